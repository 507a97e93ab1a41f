"""The artifact server: ``GET /catalog.json`` and the files it names, with true checksums. Content is made from each
file's name, so that every lab serves the same bytes.

``catalog.json`` is ``{"artifacts": [{kind, name, version, url, sha256, size, state}, …]}``; kinds are runtime, agent, jar, mod.
A configured directory adds its files under ``/extra/`` (with ranges); its own ``catalog.json``, if any, is merged (its URLs relative to
there), and looked at again when it changes. Real containers get what can really run: see :mod:`flows.lab.wares`, and no made-up content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from aiohttp import web

from flows.errors import BadInput
from flows.lab.config import LabConfig, split_bind
from flows.lab.faults import Faults, Mode, middleware
from flows.lab.serving import Site, problem, refusals
from flows.lab.world import World


@dataclass(frozen=True)
class File:
    """``state`` is candidate, promoted or withdrawn, as in the product's catalog."""

    kind: str
    name: str
    version: str
    filename: str
    size: int
    state: str = "promoted"

    @property
    def content(self) -> bytes:
        return hashlib.shake_256(self.filename.encode()).digest(self.size)


FILES = (
    File("agent", "zlh-agent", "0.1.0", "zlh-agent-0.1.0.pyz", 49_152),
    File("jar", "fabric", "1.21.4", "fabric-server-1.21.4.jar", 65_536),
    File("jar", "fabric", "1.21.1", "fabric-server-1.21.1.jar", 65_536),
    File("jar", "vanilla", "1.21.4", "minecraft-server-1.21.4.jar", 65_536),
    File("mod", "fabric-api", "0.119.2+1.21.4", "fabric-api-0.119.2+1.21.4.jar", 32_768),
    File("mod", "fabricproxy-lite", "2.10.1", "FabricProxy-Lite-2.10.1.jar", 8_192),
    File("runtime", "node", "24.11.1", "node-v24.11.1-linux-x64.tar.xz", 65_536),
    File("runtime", "node", "22.21.1", "node-v22.21.1-linux-x64.tar.xz", 65_536),
    File("runtime", "node", "20.19.5", "node-v20.19.5-linux-x64.tar.xz", 65_536, "withdrawn"),
    File("runtime", "python", "3.12.12", "cpython-3.12.12-x86_64-linux.tar.gz", 65_536),
    File("runtime", "python", "3.14.0", "cpython-3.14.0-x86_64-linux.tar.gz", 65_536, "candidate"),
)


async def start(config: LabConfig, world: World, faults: Faults) -> ArtifactsPart:
    part = ArtifactsPart(config, faults)
    await part.site.open()
    return part


class ArtifactsPart:
    """Static HTTP with ETags. ``inspect()`` shows the catalog and how often each path was asked for."""

    name = "artifacts"

    def __init__(self, config: LabConfig, faults: Faults) -> None:
        self._directory = config.artifacts.directory
        self._faults = faults
        builtin = config.artifacts.builtin if config.artifacts.builtin is not None else config.fleet == "sim"
        self._files = FILES if builtin else ()
        self._content = {file.filename: file.content for file in self._files}
        self._requests: dict[str, int] = {}
        self.site = Site(split_bind(config.artifacts.bind), self._build)
        self._extra = _extra_catalog(self._directory)
        self._seen = _stamp(self._directory)

    @property
    def endpoints(self) -> dict[str, str]:
        return {"url": self.site.url}

    async def stop(self) -> None:
        await self.site.close()

    async def restart(self) -> None:
        await self.site.close()
        await self.site.open()

    def inspect(self) -> dict[str, Any]:
        return {"url": self.site.url, "artifacts": self.catalog(), "requests": dict(self._requests)}

    def catalog(self) -> list[dict[str, Any]]:
        own = [
            {
                "kind": file.kind,
                "name": file.name,
                "version": file.version,
                "url": f"{self.site.url}/files/{file.filename}",
                "sha256": hashlib.sha256(self._content[file.filename]).hexdigest(),
                "size": file.size,
                "state": file.state,
            }
            for file in self._files
        ]
        self._look_again()
        return own + [{**entry, "url": urljoin(f"{self.site.url}/extra/", entry["url"])} for entry in self._extra]

    def _build(self) -> web.Application:
        app = web.Application(middlewares=[middleware(self._faults, "artifacts"), refusals])  # type: ignore[list-item] # aiohttp types middlewares loosely
        app.router.add_get("/catalog.json", self._serve_catalog)
        app.router.add_get("/files/{name}", self._serve_file)
        if self._directory is not None:
            app.router.add_get("/extra/{path:.+}", self._serve_extra)
        return app

    def _look_again(self) -> None:
        """A catalog that became nonsense under a running lab is not taken over."""
        stamp = _stamp(self._directory)
        if stamp != self._seen:
            with contextlib.suppress(BadInput):
                self._extra = _extra_catalog(self._directory)
            self._seen = stamp

    async def _serve_extra(self, request: web.Request) -> web.StreamResponse:
        assert self._directory is not None
        root = self._directory.resolve()
        path = (root / request.match_info["path"]).resolve()
        if not path.is_relative_to(root) or not path.is_file() or any(part.startswith(".") for part in path.relative_to(root).parts):
            return problem(404, f"no file {request.match_info['path']}")
        self._requests[request.path] = self._requests.get(request.path, 0) + 1
        if self._faults.hit("artifacts", f"{request.method} {request.path}", Mode.PARTIAL) is not None:
            with path.open("rb") as content:
                return web.Response(body=content.read(path.stat().st_size // 2), content_type="application/octet-stream")
        return web.FileResponse(path)

    async def _serve_catalog(self, request: web.Request) -> web.Response:
        return self._answer(request, json.dumps({"artifacts": self.catalog()}, indent=1).encode(), "application/json")

    async def _serve_file(self, request: web.Request) -> web.Response:
        content = self._content.get(request.match_info["name"])
        if content is None:
            return problem(404, f"no file {request.match_info['name']}")
        return self._answer(request, content, "application/octet-stream")

    def _answer(self, request: web.Request, body: bytes, kind: str) -> web.Response:
        self._requests[request.path] = self._requests.get(request.path, 0) + 1
        if self._faults.hit("artifacts", f"{request.method} {request.path}", Mode.PARTIAL) is not None:
            body = body[: len(body) // 2]
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        known = {part.strip().removeprefix("W/") for part in request.headers.get("If-None-Match", "").split(",")}
        if known & {tag, "*"}:
            return web.Response(status=304, headers={"ETag": tag})
        return web.Response(body=body, headers={"ETag": tag, "Content-Type": kind, "Cache-Control": "no-cache"})


def _stamp(directory: Path | None) -> tuple[int, int] | None:
    """Tells one catalog file from the next."""
    try:
        found = (directory / "catalog.json").stat() if directory is not None else None
    except OSError:
        found = None
    return (found.st_mtime_ns, found.st_ino) if found else None


def _extra_catalog(directory: Path | None) -> list[dict[str, Any]]:
    """Raises BadInput where the directory's catalog is not one."""
    path = directory / "catalog.json" if directory is not None else None
    if path is None or not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text())["artifacts"]
        wanted = ("kind", "name", "version", "url", "sha256", "size", "state")
        return [{key: entry[key] for key in (*wanted, *(("description",) if "description" in entry else ()))} for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput("artifacts.directory", str(directory), why=f"catalog.json is not a catalog: {error!r}") from error
