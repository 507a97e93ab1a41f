"""However a lab of real containers ends, ``down`` and a fresh ``up`` leave nothing of it on the machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.errors import AutomationError
from flows.lab import launch, program
from tests.support.lxcfleet import PARTS, PROJECT, Fleet, processes_naming, running, until
from tests.support.machines import leftovers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@pytest.fixture
def home(tmp_path: Path, machines_images: Path) -> Iterator[Path]:
    directory = tmp_path / "lab"
    yield directory
    launch.down(directory)
    assert leftovers(directory) == [] and processes_naming(f"{directory}/") == []


def session(fleet: Fleet, vmid: int) -> subprocess.Popen[bytes]:
    """A long command through the node."""
    argv = fleet.ssh_argv(f"sudo -n /usr/sbin/pct exec {vmid} -- sh -c 'echo begun; exec sleep 1000'")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.readline() == b"begun\n"
    return process


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: program.start_ticks(pid) is None)


def test_killed_in_the_middle_of_everything(home: Path) -> None:
    with running(home) as fleet:
        fleet.container(10001)
        fleet.api.nodes("pve1").vzdump.post(vmid="10001", storage="local", compress="zstd")
        with session(fleet, 10001) as talk:
            kill(fleet.state.pid)
            assert talk.wait(20) != 0, "the node's SSH server and its sessions die with the lab"
            talk.communicate()
        until(lambda: not any("sshd" in line for line in processes_naming(f"{home}/node")))
        assert leftovers(home) != [], "the container itself is still there: what follows has something to do"
        assert launch.status(home)["running"] is False
        assert launch.down(home) is True and leftovers(home) == []
        assert launch.down(home) is False


def test_a_nodes_server_that_outlived_its_lab(home: Path) -> None:
    """``unshare`` was killed between its fork and the child's wish to die with it, and sshd wrote its title over the environment."""
    with running(home) as fleet:
        kill(fleet.state.pid)
    until(lambda: processes_naming(f"{home}/node") == [])
    namespaces = ["unshare", "--mount", "--propagation", "private", "--uts", "--pid", "--fork"]
    program_file, spec = PROJECT / "flows" / "lab" / "node" / "inside.py", home / "node" / "pve1" / "spec.json"
    with subprocess.Popen([*namespaces, sys.executable, "-IS", str(program_file), str(spec)], stderr=subprocess.DEVNULL) as parent:
        until(lambda: any(line.startswith("sshd: ") for line in processes_naming(f"{home}/node")))
        parent.kill()
    assert launch.down(home) is True and processes_naming(f"{home}/node") == []


def test_a_fresh_one_takes_the_place_of_a_killed_one(home: Path) -> None:
    said: list[str] = []
    with running(home) as fleet:
        fleet.container(10001)
        kill(fleet.state.pid)
        again = launch.up(home, project_dir=PROJECT, say=said.append)
        changing = {"fingerprint"}  # the face's certificate is new, its CA is not
        ends = [{part: {k: v for k, v in e.items() if k not in changing} for part, e in s.endpoints.items()} for s in (again, fleet.state)]
        assert again.fleet == "lxc" and ends[0] == ends[1], "addresses and ports are kept"
        assert launch.status(home)["containers"] == {"all": 0, "running": 0}
        assert any(line.startswith("removed what an earlier lab left") for line in said) and any("image" in line for line in said)


@pytest.mark.parametrize("stage", ["preparing", "starting proxmox", "starting dns", "starting node"])
def test_killed_while_it_starts(home: Path, stage: str) -> None:
    """At about the moment that its log shows a certain line."""
    code = (
        "import pathlib; from flows.lab import launch;"
        f"launch.up(pathlib.Path({str(home)!r}), project_dir=pathlib.Path({str(PROJECT)!r}), fleet='lxc', overrides={{'parts': {PARTS!r}}})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        until(lambda: (home / "lab.log").exists() and stage in (home / "lab.log").read_text())
        pid = program.pid_of(home)
        launcher.kill()
        launcher.wait()
        if pid is not None:
            kill(pid)
    launch.down(home)
    assert leftovers(home) == []


def test_ended_while_it_starts(home: Path) -> None:
    """``down`` while another ``up`` still waits."""
    code = (
        "import pathlib; from flows.lab import launch;"
        f"launch.up(pathlib.Path({str(home)!r}), project_dir=pathlib.Path({str(PROJECT)!r}), fleet='lxc', overrides={{'parts': {PARTS!r}}})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        until(lambda: (home / "lab.log").exists() and "preparing" in (home / "lab.log").read_text())
        launch.down(home)
        launcher.wait(60)
    launch.down(home)
    assert leftovers(home) == [] and launch.status(home)["running"] is False


def test_a_directory_that_was_deleted_under_its_lab(home: Path) -> None:
    with running(home) as fleet:
        fleet.container(10001)
        kill(fleet.state.pid)
        shutil.rmtree(home, ignore_errors=True)
        assert leftovers(home) != []
        assert launch.down(home) is True and leftovers(home) == []


def test_the_command_line(home: Path) -> None:
    """With every part, the artifact server's wares too."""

    def zlh(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "flows.cli", "lab", *words, "--dir", str(home)]
        return subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=250, check=False)

    up = zlh("up", "--fleet", "lxc")
    assert up.returncode == 0 and "starting node\n" in up.stdout and "runs fleet lxc" in up.stdout, up
    assert zlh("status").returncode == 0 and "zlh lab down" in zlh("up", "--fleet", "sim").stderr
    assert "node pve1 is" not in zlh("fault", "node:pve1", "down").stdout and launch.status(home)["nodes"] == {"pve1": False, "pve2": True}
    down = zlh("down")
    assert (down.returncode, down.stdout) == (0, "the lab has ended\n")
    assert zlh("status").returncode == 1 and leftovers(home) == []
    assert not (home / "zlh-knot").exists(), "records of containers that are gone are gone"


def test_a_nodes_port_taken_meanwhile_is_replaced(home: Path) -> None:
    with running(home) as fleet:
        taken = int(fleet.state.endpoints["node"]["port"])
        launch.down(home)
        with socket.socket() as taker:
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taker.bind(("127.0.0.2", taken))
            taker.listen()
            assert launch.up(home, project_dir=PROJECT).endpoints["node"]["port"] != str(taken)


def test_two_labs_side_by_side(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with running(home) as one:
        with running(other) as two:
            one.container(10001), two.container(10001)
            assert one.network != two.network or one.state.config["lxc"] != two.state.config["lxc"]
            two.inside(10001, "touch /root/two")
        assert leftovers(other) == [] and one.inside(10001, "ls /root/two 2>/dev/null || echo none") == "none"


def test_a_lab_that_cannot_start_says_why_and_leaves_nothing(home: Path) -> None:
    with pytest.raises(AutomationError, match=r"lxc\.network"):
        launch.up(home, fleet="lxc", overrides={"lxc": {"network": "8.8.8.0/24"}})
    with pytest.raises(AutomationError, match="two nodes have one address"):
        nodes = [{"name": "pve1", "address": "127.0.0.1"}, {"name": "pve2", "address": "127.0.0.1"}]
        launch.up(home, fleet="lxc", overrides={"lxc": {"network": "10.217.250.0/24"}, "parts": PARTS, "proxmox": {"nodes": nodes}})
    assert leftovers(home) == []
