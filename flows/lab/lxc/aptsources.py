"""Where the host's own apt gets Debian from: the base image comes from the same mirror and is checked by the same key. Pure but for :func:`host`.

Both formats are read: deb822 (``*.sources``) and one-line lists (sources.list(5)).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CODENAMES = ("bullseye", "bookworm", "trixie", "forky", "sid", "stable", "oldstable", "oldoldstable", "testing", "unstable")
DEFAULT_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?:\s+(?P<components>.*))?$")


@dataclass(frozen=True)
class Source:
    """One URI. ``signed_by`` is a path, an armoured key, or empty for apt's own trust; ``trusted`` says that the host checks no signature."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...] = ()
    signed_by: str = ""
    trusted: bool = False


def parse_deb822(text: str) -> list[Source]:
    """Every enabled ``deb`` stanza, one Source per URI."""
    found = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t") and name:
                value = line.strip()
                fields[name] += "\n" + ("" if value == "." else value)
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0", "off"):
            continue
        suites, components = tuple(fields.get("suites", "").split()), tuple(fields.get("components", "").split())
        trusted = fields.get("trusted", "").lower() in ("yes", "true", "1")
        found += [Source(uri, suites, components, fields.get("signed-by", "").strip(), trusted) for uri in fields.get("uris", "").split()]
    return found


def parse_list(text: str) -> list[Source]:
    """Every ``deb`` line."""
    found = []
    for raw in text.splitlines():
        match = _LINE.match(raw.split("#")[0].strip())
        if match is None:
            continue
        options = dict(part.split("=", 1) for part in (match["options"] or "").split() if "=" in part)
        components = tuple((match["components"] or "").split())
        found.append(Source(match["uri"], (match["suite"],), components, options.get("signed-by", ""), options.get("trusted") == "yes"))
    return found


def choose(sources: Iterable[Source], suite: str) -> Source:
    """The best of them for ``suite``: one that has it, else one that has another suite of Debian's main archive (a mirror has them all), else
    Debian's own mirror. Security and backports archives have no base system; ``cdrom:`` and ``mirror:`` are nothing for debootstrap."""

    def rank(source: Source) -> int:
        if not re.match(r"(https?|file|copy)://?", source.uri) or (source.components and "main" not in source.components):
            return 0
        if re.search(r"security|backports|debug", source.uri):
            return 0
        if suite in source.suites:
            return 3
        if any(name in CODENAMES for name in source.suites):
            return 2
        return 0

    best = max(sources, key=rank, default=None)
    if best is None or rank(best) == 0:
        return Source(DEFAULT_MIRROR, (suite,), ("main",), DEFAULT_KEYRING)
    return best


def host(directory: Path = Path("/etc/apt")) -> list[Source]:
    """Everything that the host's apt reads; unreadable files count as empty."""
    found: list[Source] = []
    for path in [*sorted(directory.glob("sources.list.d/*.sources")), directory / "sources.list", *sorted(directory.glob("sources.list.d/*.list"))]:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        found += parse_deb822(text) if path.suffix == ".sources" else parse_list(text)
    return found
