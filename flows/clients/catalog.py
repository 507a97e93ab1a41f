"""The artifact server's catalog: what may be installed, with checksums.

Called by provisioning's steps (through ``bootstrap``) and the API. Promises the last good copy while the server is away, and says so by
``stale``; a catalog that does not validate is never taken over, whoever sent it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from flows.domain.ports import Artifact
from flows.errors import BadAnswer, NotFound, Unreachable
from flows.settings import ArtifactSettings

#: Largest catalog that is read, bytes.
MAX_BYTES = 4_194_304
PROMOTED = "promoted"
_REMEDY = "check the artifact server and ZLH_ARTIFACTS__URL"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    kind: str = Field(min_length=1, max_length=64)
    name: str = Field(min_length=1, max_length=128)
    version: str = Field(min_length=1, max_length=128)
    url: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=1)
    state: str = Field(pattern=r"^(candidate|promoted|withdrawn)$")

    @field_validator("kind", "name", "version")
    @classmethod
    def _plain(cls, value: str) -> str:
        """These become file names and arguments of roles."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", value):
            raise ValueError("must be letters, digits and ._+- alone")
        return value


class _Catalog(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    artifacts: list[_Entry]


class _Copy(BaseModel):
    """The cache file: the server's answer as it was, and its ETag."""

    model_config = ConfigDict(extra="ignore", strict=True)

    base: str
    etag: str
    body: str


class CatalogClient:
    """Implements :class:`flows.domain.ports.Catalog`. One instance per process and event loop; close it."""

    def __init__(self, settings: ArtifactSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._base = settings.url.rstrip("/")
        self._file = settings.cache_file
        self._http = httpx.AsyncClient(timeout=settings.timeout_s, transport=transport, trust_env=False)
        self._stale = False

    @property
    def stale(self) -> bool:
        """Whether the last answer came from the copy because the server gave none."""
        return self._stale

    async def close(self) -> None:
        await self._http.aclose()

    async def artifacts(self) -> Sequence[Artifact]:
        """Every entry, whatever its state. The last good copy if the server does not answer, or answers what is no catalog;
        Unreachable (BadAnswer for a malformed catalog) if there never was a good one."""
        copy = await asyncio.to_thread(_load, self._file, self._base)
        try:
            fresh = await self._fetch(copy)
        except (Unreachable, BadAnswer):
            if copy is None:
                raise
            self._stale = True
            return _parse(copy)
        entries = _parse(fresh)
        if fresh is not copy:
            await asyncio.to_thread(_save, self._file, fresh)
        self._stale = False
        return entries

    async def find(self, kind: str, name: str, version: str) -> Artifact:
        """The promoted artifact of that kind, name and version; with an empty ``version`` the one that the catalog lists last.
        Raises NotFound: candidates and withdrawn ones are not handed out."""
        what = f"{kind} {name} {version}".rstrip()
        matches = [a for a in await self.artifacts() if (a.kind, a.name) == (kind, name) and version in ("", a.version)]
        for artifact in reversed(matches):
            if artifact.state == PROMOTED:
                return artifact
        why = f"is {matches[0].state}" if matches else "is not in the catalog"
        raise NotFound(f"artifact {what}", why=why, remedy="promote it on the artifact server, or ask for another version")

    async def _fetch(self, copy: _Copy | None) -> _Copy:
        what = "fetch the catalog"
        headers = {"If-None-Match": copy.etag} if copy and copy.etag else {}
        try:
            async with self._http.stream("GET", f"{self._base}/catalog.json", headers=headers) as response:
                if response.status_code == httpx.codes.NOT_MODIFIED and copy is not None:
                    return copy
                if response.status_code != httpx.codes.OK:
                    raise Unreachable(what, why=f"the artifact server answered {response.status_code}", remedy=_REMEDY)
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise BadAnswer(what, why=f"the catalog is larger than {MAX_BYTES} bytes", remedy=_REMEDY)
                etag = response.headers.get("ETag", "")
        except httpx.HTTPError as error:
            raise Unreachable(what, why=f"no answer ({type(error).__name__})", remedy=_REMEDY) from error
        fresh = _Copy(base=self._base, etag=etag, body=body.decode(errors="replace"))
        _parse(fresh)
        return fresh


def _parse(copy: _Copy) -> list[Artifact]:
    """Raises BadAnswer where an entry is malformed, is listed twice, or would be fetched from elsewhere by something else than HTTP."""
    what = "read the catalog"
    try:
        catalog = _Catalog.model_validate_json(copy.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadAnswer(what, why=f"{where}: {first['msg']}", remedy=_REMEDY) from error
    seen: set[tuple[str, str, str]] = set()
    artifacts = []
    for entry in catalog.artifacts:
        key = (entry.kind, entry.name, entry.version)
        url = urljoin(f"{copy.base}/", entry.url)
        if urlsplit(url).scheme not in ("http", "https"):
            raise BadAnswer(what, why=f"{' '.join(key)} has a URL that is not HTTP", remedy=_REMEDY)
        if key in seen:
            raise BadAnswer(what, why=f"{' '.join(key)} is listed twice", remedy=_REMEDY)
        seen.add(key)
        artifacts.append(Artifact(entry.kind, entry.name, entry.version, url, entry.sha256, entry.size, entry.state))
    return artifacts


def _load(file: Path, base: str) -> _Copy | None:
    """The copy, if it is one and came from the same server. A damaged file counts as none: the server will give a new one."""
    try:
        copy = _Copy.model_validate_json(file.read_bytes())
        _parse(copy)
    except (OSError, ValidationError, BadAnswer):
        return None
    return copy if copy.base == base else None


def _save(file: Path, copy: _Copy) -> None:
    """Whole or not at all, also for readers in other processes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as out:
            json.dump(copy.model_dump(), out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(scratch, file)
    except BaseException:  # whatever happened, no scratch file stays; it is raised on
        Path(scratch).unlink(missing_ok=True)
        raise
