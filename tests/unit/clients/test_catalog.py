"""The catalog client: a fresh answer, an unchanged one, none, rubbish; and what is handed out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.clients.catalog import MAX_BYTES, CatalogClient
from flows.errors import BadAnswer, NotFound, Unreachable
from flows.settings import ArtifactSettings

BASE = "http://127.0.0.1:8770"
ENTRY = {"kind": "jar", "name": "fabric", "version": "1.21.4", "url": "files/f.jar", "sha256": "a" * 64, "size": 10, "state": "promoted"}


class Peer:
    """Answers with ``answer``; honours ETags."""

    def __init__(self) -> None:
        self.answer: Any = {"artifacts": [ENTRY]}
        self.status = 200
        self.etag = '"1"'
        self.seen: list[str] = []
        self.statuses: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request.headers.get("If-None-Match", ""))
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.status == 200 and request.headers.get("If-None-Match") == self.etag:
            self.statuses.append(304)
            return httpx.Response(304)
        self.statuses.append(self.status)
        content = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
        return httpx.Response(self.status, content=content, headers={"ETag": self.etag})


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "var" / "catalog.json"


def content(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


@pytest.fixture
async def catalog(peer: Peer, file: Path) -> AsyncIterator[CatalogClient]:
    client = CatalogClient(ArtifactSettings(url=BASE, cache_file=file), transport=httpx.MockTransport(peer))
    yield client
    await client.close()


async def test_reads_entries_with_absolute_urls(catalog: CatalogClient) -> None:
    (artifact,) = await catalog.artifacts()
    assert (artifact.url, artifact.size, artifact.state) == (f"{BASE}/files/f.jar", 10, "promoted")
    assert not catalog.stale


async def test_an_unchanged_catalog_is_not_sent_again(catalog: CatalogClient, peer: Peer) -> None:
    first = await catalog.artifacts()
    assert await catalog.artifacts() == first
    assert peer.statuses == [200, 304]
    assert peer.seen == ["", '"1"']


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), httpx.ReadTimeout("late")])
async def test_the_last_good_copy_serves_while_the_server_is_away(catalog: CatalogClient, peer: Peer, failure: Exception) -> None:
    await catalog.artifacts()
    peer.answer = failure
    (artifact,) = await catalog.artifacts()
    assert artifact.name == "fabric"
    assert catalog.stale
    peer.answer = {"artifacts": [ENTRY]}
    await catalog.artifacts()
    assert not catalog.stale


async def test_the_copy_outlives_the_process(catalog: CatalogClient, peer: Peer, file: Path) -> None:
    await catalog.artifacts()
    peer.answer = httpx.ConnectError("refused")
    other = CatalogClient(ArtifactSettings(url=BASE, cache_file=file), transport=httpx.MockTransport(peer))
    assert len(await other.artifacts()) == 1
    assert other.stale
    await other.close()


async def test_a_copy_of_another_server_is_none(catalog: CatalogClient, peer: Peer, file: Path) -> None:
    await catalog.artifacts()
    peer.answer = httpx.ConnectError("refused")
    other = CatalogClient(ArtifactSettings(url="http://127.0.0.1:9999", cache_file=file), transport=httpx.MockTransport(peer))
    with pytest.raises(Unreachable):
        await other.artifacts()
    await other.close()


async def test_without_any_copy_it_is_unreachable(catalog: CatalogClient, peer: Peer) -> None:
    peer.answer = httpx.ConnectError("refused")
    with pytest.raises(Unreachable, match="ZLH_ARTIFACTS__URL"):
        await catalog.artifacts()


RUBBISH = [
    b"not json",
    {"artifacts": [{**ENTRY, "sha256": "A" * 64}]},
    {"artifacts": [{**ENTRY, "state": "blessed"}]},
    {"artifacts": [{**ENTRY, "size": "10"}]},
    {"artifacts": [{**ENTRY, "name": "../../etc"}]},
    {"artifacts": [{**ENTRY, "url": "file:///etc/passwd"}]},
    {"artifacts": [{k: v for k, v in ENTRY.items() if k != "sha256"}]},
    {"artifacts": [ENTRY, ENTRY]},
    {},
    b"[" + b" " * MAX_BYTES + b"]",
]


@pytest.mark.parametrize("answer", RUBBISH)
async def test_rubbish_is_refused_and_never_replaces_the_copy(catalog: CatalogClient, peer: Peer, file: Path, answer: Any) -> None:
    peer.answer = answer
    with pytest.raises(BadAnswer):
        await catalog.artifacts()
    assert content(file) is None
    peer.answer = {"artifacts": [ENTRY]}
    await catalog.artifacts()
    before = content(file)
    peer.answer, peer.etag = answer, '"2"'
    assert len(await catalog.artifacts()) == 1
    assert catalog.stale
    assert content(file) == before


def damage(file: Path) -> None:
    file.write_text(file.read_text()[:40])


async def test_a_damaged_copy_is_replaced(catalog: CatalogClient, peer: Peer, file: Path) -> None:
    await catalog.artifacts()
    damage(file)
    assert len(await catalog.artifacts()) == 1
    assert peer.statuses == [200, 200]


async def test_no_scratch_file_stays(catalog: CatalogClient, file: Path) -> None:
    await catalog.artifacts()
    assert [p.name for p in file.parent.iterdir()] == ["catalog.json"]


@pytest.mark.parametrize("state", ["candidate", "withdrawn"])
async def test_only_promoted_artifacts_are_handed_out(catalog: CatalogClient, peer: Peer, state: str) -> None:
    peer.answer = {"artifacts": [{**ENTRY, "state": state}]}
    with pytest.raises(NotFound, match=f"is {state}"):
        await catalog.find("jar", "fabric", "1.21.4")
    with pytest.raises(NotFound, match="not in the catalog"):
        await catalog.find("jar", "fabric", "9")
    peer.answer, peer.etag = {"artifacts": [ENTRY]}, '"2"'
    assert (await catalog.find("jar", "fabric", "1.21.4")).sha256 == "a" * 64


async def test_without_a_version_the_last_promoted_one_is_found(catalog: CatalogClient, peer: Peer) -> None:
    peer.answer = {"artifacts": [{**ENTRY, "version": "1.21.1"}, ENTRY, {**ENTRY, "version": "1.22", "state": "candidate"}]}
    assert (await catalog.find("jar", "fabric", "")).version == "1.21.4"
