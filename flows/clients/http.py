"""What the HTTP clients share: literal addresses in settings, answers of bounded size, text of a peer that is fit for an error.

Every client of ``flows.clients`` calls these; nothing here does I/O of its own but :func:`read_capped`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import httpx

from flows.errors import BadAnswer, MisconfiguredSetting

#: Longest piece of a peer's text that goes into an error, characters.
MAX_TEXT = 400
_UNFIT = re.compile(r"[^\x20-\x7e\u00a0-\ufffd]+")


def literal_host(setting: str, value: str, default_port: int | None = None) -> tuple[str, int]:
    """``address:port`` or ``[address]:port`` → ``(address, port)``.

    Raises MisconfiguredSetting for a host name: control traffic must not depend on DNS, which is one of the things we mend.
    """
    parts = urlsplit(f"//{value}")
    try:
        host, port = parts.hostname or "", parts.port or default_port
        ipaddress.ip_address(host)
        clean = not (parts.path or parts.query or parts.fragment or parts.username)
    except ValueError:
        clean, host, port = False, "", None
    if not clean or port is None:
        raise MisconfiguredSetting(
            setting, why=f"{value!r} is not address:port with a literal IP address", remedy=f"set {setting} like 10.0.0.1:8006"
        )
    return host, port


def require_literal_address(setting: str, url: str, *, schemes: Iterable[str] = ("http", "https")) -> str:
    """The URL without a trailing slash. Raises MisconfiguredSetting unless its host is a literal IP address."""
    try:
        parts = urlsplit(url)
        ipaddress.ip_address(parts.hostname or "")
        parts.port  # noqa: B018 - reading it raises ValueError for a port out of range
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in schemes or parts.username or parts.query or parts.fragment:
        wanted = "/".join(schemes)
        raise MisconfiguredSetting(
            setting, why=f"{url!r} is not a {wanted} URL with a literal IP address", remedy=f"set {setting} to an address instead of a host name"
        )
    return url.rstrip("/")


def is_loopback(url_or_address: str) -> bool:
    """Whether a literal address, or a URL's, is loopback."""
    host = urlsplit(url_or_address).hostname if "://" in url_or_address else url_or_address
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def fit(text: object, *secrets: str) -> str:
    """A peer's text made safe for an error or a log: one line, printable, short, our secrets removed."""
    clean = str(text)
    for secret in secrets:
        if secret:
            clean = clean.replace(secret, "…")
    clean = _UNFIT.sub(" ", clean).strip()
    return clean if len(clean) <= MAX_TEXT else clean[:MAX_TEXT] + "…"


def decode(what: str, body: bytes) -> Any:
    """JSON of a peer. Raises BadAnswer, also for nesting that would exhaust the parser."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(what, why="the answer is not JSON") from error


def decode_object(what: str, body: bytes) -> dict[str, Any]:
    """A JSON object of a peer. Raises BadAnswer."""
    answer = decode(what, body)
    if not isinstance(answer, dict):
        raise BadAnswer(what, why=f"the answer is a JSON {type(answer).__name__}, not an object")
    return answer


def detail(body: bytes, *secrets: str) -> str:
    """The human part of an RFC 9457 problem document, or of whatever came instead."""
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return fit(body[:MAX_TEXT].decode(errors="replace"), *secrets)
    if isinstance(problem, dict):
        return fit(problem.get("detail") or problem.get("title") or "", *secrets)
    return ""


async def read_capped(what: str, response: httpx.Response, limit: int) -> bytes:
    """The body of a streamed response. Raises BadAnswer beyond ``limit`` bytes, before they are all here."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > limit:
            raise BadAnswer(what, why=f"the answer is larger than {limit} bytes")
        parts.append(part)
    return b"".join(parts)
