"""Wares: built once per content, whole or not at all, and a catalog that is true at every moment. Builds here need no npm."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.errors import AutomationError, Busy, TaskFailed
from flows.lab import wares
from flows.lab.artifacts import start
from flows.lab.config import LabConfig
from flows.lab.faults import Faults, Mode
from flows.lab.ware_cache import Run, cached, digest, tree
from flows.lab.wares import Ware, _mod, _publish, prepare
from flows.lab.world import World


def test_built_once_and_found_again(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(target: Path, run: Run) -> None:
        built.append(target)
        (target / "file").write_text("content")

    first = cached("thing", "k", build, cache=tmp_path / "cache")
    assert cached("thing", "k", build, cache=tmp_path / "cache") == first
    assert (first / "file").read_text() == "content" and len(built) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir() if "building" in path.name] == []


def test_two_at_once_build_it_once(tmp_path: Path) -> None:
    built: list[int] = []

    def build(target: Path, run: Run) -> None:
        built.append(1)
        time.sleep(0.2)
        (target / "file").write_text("content")

    threads = [threading.Thread(target=cached, args=("thing", "k", build), kwargs={"cache": tmp_path}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and (tmp_path / "thing-k" / "file").is_file()


def test_a_failed_build_publishes_nothing_and_says_why(tmp_path: Path) -> None:
    def build(target: Path, run: Run) -> None:
        (target / "half").write_text("x")
        run([sys.executable, "-c", "import sys; sys.exit('the disk ate it')"], target)

    with pytest.raises(TaskFailed, match="the disk ate it"):
        cached("thing", "k", build, cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]


def test_a_missing_tool_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(AutomationError, match="there is no npm-that-is-not-here"):
        cached("thing", "k", lambda target, run: run(["npm-that-is-not-here"], target) and None, cache=tmp_path)


def test_our_secrets_do_not_reach_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLH_PROXMOX__TOKEN_SECRET", "secret")
    seen: list[str] = []
    cached("thing", "k", lambda target, run: seen.append(run([sys.executable, "-c", "import os; print(dict(os.environ))"], target)), cache=tmp_path)
    assert "ZLH_" not in seen[0] and "PATH" in seen[0]


def test_a_full_or_forbidden_cache_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AutomationError, match="file"):
        cached("thing", "k", lambda target, run: None, cache=tmp_path / "file")


_KILLED = """
import sys, time
from pathlib import Path
from flows.lab.ware_cache import cached
def build(target, run):
    (target / "half").write_text("x")
    (target.parent.parent / "started").write_text("x")
    run([sys.executable, "-c", "import time; time.sleep(600)"], target)
cached("thing", "k", build, cache=Path(sys.argv[1]))
"""


def test_after_a_kill_in_the_middle_it_is_built_anew(tmp_path: Path) -> None:
    victim = subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], cwd=Path(__file__).parents[3])
    try:
        _eventually(lambda: (tmp_path / "started").exists(), 20)
        with pytest.raises(Busy):
            cached("thing", "k", lambda target, run: None, cache=tmp_path, patience_s=0.3)
        assert not (tmp_path / "thing-k").exists()
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    cached("thing", "k", lambda target, run: (target / "whole").touch(), cache=tmp_path, patience_s=20)
    assert [path.name for path in (tmp_path / "thing-k").iterdir()] == ["whole"]
    assert not list(tmp_path.glob(".thing.building-*"))


def test_the_hash_covers_names_contents_and_facts(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    base = digest(tree(tmp_path), "x")
    assert digest(tree(tmp_path), "y") != base
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("1")
    assert digest(tree(tmp_path), "x") == base
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = digest(tree(tmp_path), "x")
    (tmp_path / "b").write_text("2")
    assert len({base, renamed, digest(tree(tmp_path), "x")}) == 3


def test_mods_are_archives_with_their_description_and_the_same_bytes_each_time() -> None:
    content = _mod("fabric-api", "0.42.0+1.16", "Fabric API", ">=1.16.2")
    assert content == _mod("fabric-api", "0.42.0+1.16", "Fabric API", ">=1.16.2")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        about = json.loads(archive.read("fabric.mod.json"))
    assert (about["id"], about["version"], about["schemaVersion"]) == ("fabric-api", "0.42.0+1.16", 1)


def _ware(path: Path, content: str) -> Ware:
    path.write_text(content)
    return Ware("agent", "zlh-agent", "0.1.0", "agent.pyz", "an agent", path)


async def test_the_artifact_server_serves_them_alone_and_notices_new_ones(
    tmp_path: Path, lab_config: Callable[..., LabConfig], world: World, faults: Faults
) -> None:
    served = tmp_path / "served"
    _publish(served, [_ware(tmp_path / "a", "first bytes")])
    part = await start(lab_config(artifacts={"directory": served, "builtin": False}), world, faults)
    try:
        async with httpx.AsyncClient() as http:
            old = await _only(http, part.endpoints["url"])
            assert old["description"] == "an agent"
            _publish(served, [_ware(tmp_path / "a", "other bytes, longer")])
            new = await _only(http, part.endpoints["url"])
            assert new["sha256"] != old["sha256"] and new["size"] == 19
            assert (await http.get(old["url"])).text == "first bytes"  # who read the old catalog still gets what it named
            assert (await http.get(new["url"])).text == "other bytes, longer"
            part_of = await http.get(new["url"], headers={"Range": "bytes=6-10"})
            assert (part_of.status_code, part_of.text) == (206, "bytes")
            tag = part_of.headers["ETag"]
            assert (await http.get(new["url"], headers={"If-None-Match": tag})).status_code == 304
            faults.arm("artifacts", Mode.PARTIAL, count=1)
            assert len((await http.get(new["url"])).content) == 9
            (served / "catalog.json").write_text('{"artifacts": [{}]}')
            assert await _only(http, part.endpoints["url"]) == new
            _publish(served, [_ware(tmp_path / "a", "third")])
            assert (await http.get(old["url"])).status_code == 404
    finally:
        await part.stop()


async def test_nothing_outside_of_the_directory_is_served(tmp_path: Path, lab_config: Callable[..., LabConfig], world: World, faults: Faults) -> None:
    served = tmp_path / "served"
    _publish(served, [_ware(tmp_path / "a", "bytes")])
    (tmp_path / "secret").write_text("secret")
    (served / "link").symlink_to(tmp_path / "secret")
    (served / ".hidden").write_text("half written")
    part = await start(lab_config(artifacts={"directory": served, "builtin": False}), world, faults)
    try:
        async with httpx.AsyncClient() as http:
            for path in ("link", ".hidden", "%2e%2e/secret", "..%2fsecret", "nothing"):
                assert (await http.get(f"{part.endpoints['url']}/extra/{path}")).status_code == 404, path
    finally:
        await part.stop()


def test_publishing_twice_changes_nothing_and_mends_a_damaged_file(tmp_path: Path) -> None:
    ware = _ware(tmp_path / "a", "bytes")
    _publish(tmp_path / "served", [ware])
    (file,) = (tmp_path / "served").glob("*/agent.pyz")
    before = os.stat(file)
    _publish(tmp_path / "served", [ware])
    assert os.stat(file).st_ino == before.st_ino
    file.write_text("damaged")
    _publish(tmp_path / "served", [ware])
    assert file.read_text() == "bytes"
    assert not [path for path in (tmp_path / "served").rglob("*") if path.name.startswith(".")]


def test_without_an_agent_to_build_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(AutomationError, match=r"agent/build\.py"):
        prepare(tmp_path / "served", tmp_path, cache=tmp_path / "cache")
    assert not (tmp_path / "served" / "catalog.json").exists()


def test_the_agents_build_is_taken_by_what_it_prints(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    script = "import sys, pathlib\np = pathlib.Path(sys.argv[2]) / 'zlh-agent-0.1.0.pyz'\np.write_text('pyz')\nprint('building')\nprint(p)\n"
    (tmp_path / "agent" / "build.py").write_text(script)
    assert wares.agent(tmp_path, tmp_path / "cache").path.read_text() == "pyz"
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "agent" / "build.py").write_text(f"print({str(tmp_path / 'victim')!r})")
    with pytest.raises(TaskFailed, match="victim"):
        wares.agent(tmp_path, tmp_path / "cache")
    assert (tmp_path / "victim").read_text() == "mine"


def test_locks_name_no_registry_and_hold_every_hash() -> None:
    for directory in (wares._GAMES, wares._RUNTIMES):
        lock = json.loads((directory / "package-lock.json").read_text())
        fetched = [entry for path, entry in lock["packages"].items() if path and not entry.get("inBundle") and not entry.get("link")]
        assert fetched and all(entry["integrity"].startswith("sha512-") and "resolved" not in entry for entry in fetched)


async def _only(http: httpx.AsyncClient, url: str) -> dict[str, Any]:
    (entry,) = (await http.get(f"{url}/catalog.json")).json()["artifacts"]
    return dict(entry)


def _eventually(condition: Callable[[], bool], deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _tools() -> None:
    """`setpriv` is Debian's own; without it a build outlives a killed builder."""
    assert shutil.which("setpriv")
