"""The lab as a program: started, found, told, ended, by launchers that live, die and come twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows import settings
from flows.errors import AutomationError, BadInput, Unreachable
from flows.lab import launch, program, wiring

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "lab"
    yield directory
    launch.down(directory)


def until(condition: Callable[[], Any], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def test_up_twice_down_twice(home: Path) -> None:
    assert launch.status(home) == {"running": False, "directory": str(home)}
    assert launch.down(home) is False
    first = launch.up(home, project_dir=PROJECT)
    again = launch.up(home, project_dir=PROJECT)
    assert again.pid == first.pid
    status = launch.status(home)
    assert status["running"] and status["nodes"] == {"pve1": True, "pve2": True} and status["containers"] == {"all": 0, "running": 0}
    assert [n["templates"] for n in first.nodes] == [{"fabric": 9000, "dev": 9001}, {"fabric": 9010, "dev": 9011}]
    assert launch.down(home) is True
    assert program.start_ticks(first.pid) is None and not (home / "state.json").exists()
    assert launch.down(home) is False
    with pytest.raises(Unreachable, match="zlh lab up"):
        launch.load(home)
    second = launch.up(home, project_dir=PROJECT)
    assert launch.env(second) == launch.env(first), "addresses and secrets outlive a run"


def test_the_product_can_read_its_environment(home: Path) -> None:
    state = launch.up(home, project_dir=PROJECT)
    values = launch.env(state)
    loaded = settings.load(values)
    assert loaded.ansible.runner == "lab" and loaded.proxmox.ca_file is not None and loaded.proxmox.ca_file.exists()
    assert loaded.network.gateway == "127.20.0.1" and loaded.agent.port > 0
    assert all(getattr(loaded.notify, channel).get_secret_value() for channel in wiring.CHANNELS)
    secret = values["ZLH_PROXMOX__TOKEN"]
    assert secret not in repr(state) and state.control_token not in repr(state)
    assert secret not in (home / "lab.log").read_text() and secret not in (home / "state.json").read_text()
    assert secret not in Path(f"/proc/{state.pid}/cmdline").read_text() and secret not in Path(f"/proc/{state.pid}/environ").read_text()
    assert {(home / n).stat().st_mode & 0o777 for n in ("config.json", "state.json", "lab.pid")} == {0o600}


def test_faults(home: Path) -> None:
    launch.up(home, project_dir=PROJECT)
    armed = launch.fault(home, "proxmox", "slow", seconds=0.1, count=3)
    assert [f["id"] for f in launch.status(home)["faults"]] == [armed["id"]]
    with pytest.raises(BadInput) as caught:
        launch.fault(home, "proxmox", "slow", count=-1)
    assert (caught.value.field, caught.value.value) == ("count", -1)
    with pytest.raises(AutomationError, match="there is no fault 99"):
        launch.clear(home, 99)
    assert launch.clear(home) == 1


def test_a_launcher_that_is_killed_leaves_a_lab_that_can_be_ended(home: Path) -> None:
    code = f"import time,pathlib; from flows.lab import launch; launch.up(pathlib.Path({str(home)!r})); time.sleep(600)"
    launcher = subprocess.Popen([sys.executable, "-c", code])
    try:
        until(lambda: launch.status(home)["running"], 30)
    finally:
        launcher.kill()
        launcher.wait()
    pid = launch.load(home).pid
    assert launch.up(home).pid == pid, "it is found, not doubled"
    assert launch.down(home) is True
    until(lambda: program.start_ticks(pid) is None)


def test_a_launcher_killed_before_it_wrote_the_process_id(home: Path) -> None:
    """Only the lab itself then says who it is, once it is ready; until then its lock shows that it lives."""
    pid = launch.up(home).pid
    (home / "lab.pid").unlink()
    hidden = (home / "state.json").rename(home / "hidden")
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(launch.down, home)
        time.sleep(0.1)
        assert not ending.done()
        hidden.rename(home / "state.json")
        assert ending.result(20) is True
    until(lambda: program.start_ticks(pid) is None)


def test_a_killed_lab_is_not_running_and_starts_anew(home: Path) -> None:
    first = launch.up(home)
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: program.start_ticks(first.pid) is None)
    assert launch.status(home)["running"] is False
    assert launch.up(home).pid != first.pid


def test_a_process_id_that_was_handed_on_is_left_alone(home: Path) -> None:
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        home.mkdir()
        (home / "lab.pid").write_text(json.dumps({"pid": innocent.pid, "started": 1}))
        assert launch.down(home) is False
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_many_launchers_at_once_make_one_lab(home: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        states = list(pool.map(lambda _: launch.up(home), range(6)))
    assert len({s.pid for s in states}) == 1


def test_a_port_taken_meanwhile_is_replaced(home: Path) -> None:
    first = launch.up(home)
    launch.down(home)
    host, _, port = first.endpoints["proxmox"]["address"].partition(":")
    with socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taker.bind((host, int(port)))
        taker.listen()
        assert launch.up(home).endpoints["proxmox"]["address"] != first.endpoints["proxmox"]["address"]


def test_a_lab_that_cannot_start_says_why(home: Path) -> None:
    with pytest.raises(AutomationError, match=r"proxmox\.colour") as caught:
        launch.up(home, overrides={"proxmox": {"colour": "red"}})
    assert "lab.log" in caught.value.remedy
    shutil.rmtree(home)
    assert launch.up(home, overrides={"proxmox": {"timings": {"clone_s": 0.2}}, "parts": ["proxmox"]}).endpoints.keys() == {"proxmox"}


def test_the_bridge_follows_the_control_listener(home: Path) -> None:
    launch.up(home, backends_url="http://127.0.0.1:9/internal/proxy/backends", backends_token="one")
    state = launch.up(home, backends_url="http://127.0.0.1:10/internal/proxy/backends", backends_token="two")
    assert launch.load(home).config["bridge"]["backends_url"].startswith("http://127.0.0.1:10/")
    assert "two" not in repr(state)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(home: Path, number: signal.Signals) -> None:
    state = launch.up(home)
    process = program.children[state.pid]
    os.kill(state.pid, number)
    assert process.wait(10) == 0
    assert not (home / "state.json").exists(), "whoever polls the state file sees at once that it is over"
