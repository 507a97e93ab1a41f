"""The artifact server over HTTP: what the catalog promises is what is served."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from flows.domain.ports import Artifact
from flows.errors import BadInput
from flows.lab.artifacts import ArtifactsPart, start
from flows.lab.config import LabConfig
from flows.lab.faults import Faults, Mode
from flows.lab.world import World


@pytest.fixture
async def part(lab_config: Callable[..., LabConfig], world: World, faults: Faults) -> AsyncIterator[ArtifactsPart]:
    part = await start(lab_config(), world, faults)
    yield part
    await part.stop()


async def test_every_entry_has_the_catalogs_shape_and_a_true_checksum(part: ArtifactsPart) -> None:
    async with httpx.AsyncClient() as http:
        entries = (await http.get(f"{part.endpoints['url']}/catalog.json")).json()["artifacts"]
        assert {entry["kind"] for entry in entries} == {"runtime", "agent", "jar", "mod"}
        fields = {field.name for field in dataclasses.fields(Artifact)}
        for entry in entries:
            assert set(entry) == fields
            body = (await http.get(entry["url"])).content
            assert (hashlib.sha256(body).hexdigest(), len(body)) == (entry["sha256"], entry["size"])
    promoted = {(entry["kind"], entry["name"]) for entry in entries if entry["state"] == "promoted"}
    assert promoted >= {
        ("agent", "zlh-agent"), ("jar", "fabric"), ("mod", "fabric-api"), ("mod", "fabricproxy-lite"), ("runtime", "node"), ("runtime", "python"),
    }  # fmt: skip


async def test_unchanged_answers_are_304_and_missing_files_404(part: ArtifactsPart) -> None:
    async with httpx.AsyncClient(base_url=part.endpoints["url"]) as http:
        tag = (await http.get("/catalog.json")).headers["ETag"]
        again = await http.get("/catalog.json", headers={"If-None-Match": f'"x", {tag}'})
        assert again.status_code == 304 and again.content == b""
        assert (await http.get("/catalog.json", headers={"If-None-Match": '"x"'})).status_code == 200
        assert (await http.get("/files/nothing.jar")).status_code == 404


async def test_the_same_bytes_in_every_lab(part: ArtifactsPart, lab_config: Callable[..., LabConfig], world: World, faults: Faults) -> None:
    other = await start(lab_config(), world, faults)
    await other.stop()
    assert [entry["sha256"] for entry in other.catalog()] == [entry["sha256"] for entry in part.catalog()]


async def test_unreachable_on_demand_and_back_on_the_same_port(part: ArtifactsPart, faults: Faults) -> None:
    url = part.endpoints["url"]
    faults.arm("artifacts", Mode.UNREACHABLE, count=1)
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.TransportError):
            await http.get(f"{url}/catalog.json")
        await part.restart()
        assert (await http.get(f"{url}/catalog.json")).status_code == 200


async def test_a_partial_file_does_not_match_its_checksum(part: ArtifactsPart, faults: Faults) -> None:
    entry = part.catalog()[0]
    faults.arm("artifacts", Mode.PARTIAL, count=1)
    async with httpx.AsyncClient() as http:
        assert len((await http.get(entry["url"])).content) < entry["size"]
        assert len((await http.get(entry["url"])).content) == entry["size"]


async def test_a_directory_adds_files_and_entries(tmp_path: Path, lab_config: Callable[..., LabConfig], world: World, faults: Faults) -> None:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "own.jar").write_bytes(b"own")
    entry = {
        "kind": "jar",
        "name": "own",
        "version": "1",
        "url": "own.jar",
        "sha256": hashlib.sha256(b"own").hexdigest(),
        "size": 3,
        "state": "promoted",
    }
    (tmp_path / "extra" / "catalog.json").write_text(json.dumps({"artifacts": [entry]}))
    part = await start(lab_config(artifacts={"directory": tmp_path / "extra"}), world, faults)
    try:
        listed = part.catalog()[-1]
        async with httpx.AsyncClient() as http:
            assert (await http.get(listed["url"])).content == b"own"
    finally:
        await part.stop()
    (tmp_path / "extra" / "catalog.json").write_text('{"artifacts": [{"kind": "jar"}]}')
    with pytest.raises(BadInput, match=r"artifacts\.directory"):
        await start(lab_config(artifacts={"directory": tmp_path / "extra"}), world, faults)
