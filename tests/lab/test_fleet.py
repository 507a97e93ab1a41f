"""Fleet ``lxc`` through its Proxmox face: what real containers do shows, and what is asked is really done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ResourceException

from flows import settings
from flows.errors import BadInput, Conflict
from flows.lab import launch
from tests.support.lxcfleet import PARTS, Fleet, running, until
from tests.support.machines import leftovers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, machines_images: Path) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("fleet") / "lab"
    with running(directory, parts=[*PARTS, "artifacts"]) as fleet:
        yield fleet
    assert leftovers(directory) == []


def status(container: Any) -> str:
    return str(container.status.current.get()["status"])


def test_a_container_lives_and_dies(fleet: Fleet) -> None:
    container = fleet.container(10001)
    assert status(container) == "running" and fleet.inside(10001, "hostname; nproc >/dev/null; cat /etc/debian_version").startswith("t10001\n12.")
    assert fleet.inside(10001, "ip -4 -o addr show eth0").split()[3] == f"{fleet.address(10001)}/24"
    container.config.put(memory=384)
    limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"
    assert fleet.inside(10001, limit) == str(384 << 20), "memory changes while it runs"
    assert fleet.done(container.status.reboot.post(timeout=60)) == "OK"
    assert status(container) == "running"
    assert fleet.done(container.status.shutdown.post(timeout=60)) == "OK"
    assert status(container) == "stopped"
    with pytest.raises(ResourceException, match="CT 10001 not running"):
        container.status.stop.post()
    assert fleet.done(container.status.start.post()) == "OK"
    with pytest.raises(ResourceException, match="unable to destroy CT 10001 - container is running"):
        container.delete()
    assert fleet.done(container.delete(force=1)) == "OK"
    assert not list((fleet.state.directory / "lxc").rglob("*10001"))


def test_one_that_halts_or_dies_by_itself_shows_stopped(fleet: Fleet) -> None:
    container = fleet.container(10002)
    until(lambda: fleet.inside(10002, "systemctl is-system-running || true") in ("running", "degraded"))
    fleet.inside(10002, "systemctl poweroff --no-block")
    until(lambda: status(container) == "stopped")
    assert [c["status"] for c in fleet.api.cluster.resources.get(type="vm") if c["vmid"] == 10002] == ["stopped"]
    assert fleet.done(container.status.start.post()) == "OK"


def test_one_that_does_not_stop_in_time(fleet: Fleet) -> None:
    container = fleet.container(10003)
    until(lambda: fleet.inside(10003, "systemctl is-system-running || true") in ("running", "degraded"))
    unit = "[Service]\nExecStart=/bin/sleep 1000\nExecStop=/bin/sleep 1000\nTimeoutStopSec=1000\n"
    fleet.inside(10003, f"printf '{unit}' > /etc/systemd/system/slow.service; systemctl start slow")
    began = time.monotonic()
    assert fleet.done(container.status.shutdown.post(timeout=2)) == "container did not stop"
    assert time.monotonic() - began < 20 and status(container) == "running"
    assert fleet.done(container.status.shutdown.post(timeout=2, forceStop=1)) == "OK"
    assert status(container) == "stopped"


def test_snapshot_backup_and_restore_are_real(fleet: Fleet) -> None:
    container = fleet.container(10004)
    fleet.inside(10004, "echo first > /root/state; sync")
    assert fleet.done(container.snapshot.post(snapname="first")) == "OK"
    fleet.inside(10004, "echo second > /root/state; sync")
    assert [s["name"] for s in container.snapshot.get()] == ["first", "current"]
    upid = fleet.api.nodes("pve1").vzdump.post(vmid="10004", storage="local", compress="zstd", mode="snapshot")
    assert fleet.done(upid) == "OK"
    (volume,) = fleet.api.nodes("pve1").storage("local").content.get(content="backup", vmid=10004)
    assert f"INFO: creating vzdump archive '/var/lib/vz/dump/{volume['volid'].removeprefix('local:backup/')}'" in fleet.log(upid)
    assert volume["size"] > 10_000_000
    plain = fleet.api.nodes("pve1").vzdump.post(vmid="10004", storage="local")
    assert fleet.done(plain) == "job errors" and any("compress=zstd" in line for line in fleet.log(plain))
    assert fleet.done(container.snapshot("first").rollback.post(start=1)) == "OK"
    assert fleet.inside(10004, "cat /root/state") == "first"
    ask = {"vmid": 10004, "ostemplate": volume["volid"], "restore": 1, "force": 1, "storage": "local-lvm"}
    with pytest.raises(ResourceException, match="can't overwrite running container"):
        fleet.api.nodes("pve1").lxc.post(**ask)
    assert fleet.done(container.status.stop.post()) == "OK"
    assert fleet.done(fleet.api.nodes("pve1").lxc.post(**ask, start=1)) == "OK"
    assert fleet.inside(10004, "cat /root/state") == "second"
    assert [s["name"] for s in container.snapshot.get()] == ["current"]
    net = f"name=eth0,bridge=vmbr0,ip={fleet.address(10005)}/24,gw={fleet.network}.1"
    other = {**ask, "vmid": 10005, "force": 0, "unique": 1, "hostname": "copy", "net0": net, "start": 1}
    assert fleet.done(fleet.api.nodes("pve1").lxc.post(**other)) == "OK"
    assert fleet.inside(10005, "cat /root/state; hostname") == "second\ncopy"
    assert fleet.done(fleet.api.nodes("pve1").storage("local").content(volume["volid"]).delete()) == "OK"
    assert not list((fleet.state.directory / "lxc" / "dump").rglob("*.zst"))


def test_a_cancelled_clone_leaves_nothing(fleet: Fleet) -> None:
    upid = fleet.api.nodes("pve1").lxc(9000).clone.post(newid=10006, full=1)
    fleet.api.nodes("pve1").tasks(upid).delete()
    if fleet.done(upid) != "OK":
        assert not list((fleet.state.directory / "lxc").rglob("*10006"))
    else:
        assert fleet.done(fleet.api.nodes("pve1").lxc(10006).delete()) == "OK"


def test_behind_the_controllers_back(fleet: Fleet) -> None:
    container = fleet.container(10020, node="pve2")
    container.config.put(onboot=1)
    home = fleet.state.directory
    launch.meddle(home, "ct:10020", "stop")
    assert status(container) == "stopped"
    launch.meddle(home, "ct:10020", "start")
    assert fleet.inside(10020, "echo there", address="127.0.0.2") == "there"
    launch.meddle(home, "node:pve2", "down")
    assert [c["status"] for c in fleet.api.cluster.resources.get(type="vm") if c["vmid"] == 10020] == ["unknown"]
    launch.meddle(home, "node:pve2", "up")
    assert status(container) == "running"
    with pytest.raises(BadInput, match="has no agent"):
        until(lambda: fleet.inside(10020, "systemctl is-system-running || true", address="127.0.0.2") in ("running", "degraded"))
        launch.meddle(home, "agent:10020", "kill")
    launch.meddle(home, "ct:10020", "destroy")
    assert not list((home / "lxc").rglob("*10020"))


def test_an_agent_is_killed_frozen_and_revived(fleet: Fleet) -> None:
    """A stand-in of the agent's unit: what is proven is what the lab does to it."""
    fleet.container(10007)
    until(lambda: fleet.inside(10007, "systemctl is-system-running || true") in ("running", "degraded"))
    for name in ("zlh-agent", "zlh-game"):
        restart = "always\nRestartSec=0.2" if name == "zlh-agent" else "no"
        unit = f"[Service]\nExecStart=/bin/sleep 1000\nRestart={restart}\n"
        fleet.inside(10007, f"printf '{unit}' > /etc/systemd/system/{name}.service; systemctl daemon-reload; systemctl start {name}")
    home = fleet.state.directory

    def state(unit: str = "zlh-agent") -> str:
        pid = fleet.inside(10007, f"systemctl show --property=MainPID --value {unit}")
        return "dead" if pid == "0" else fleet.inside(10007, f"cut -d' ' -f3 /proc/{pid}/stat")

    assert launch.meddle(home, "agent:10007", "freeze") == {"vmid": 10007, "alive": True, "frozen": True, "workload": "active"}
    assert state() == "T"
    launch.meddle(home, "agent:10007", "revive")
    assert state() == "S"
    done = launch.meddle(home, "agent:10007", "kill")
    assert done is not None and done["alive"] is False
    time.sleep(0.6)  # longer than the unit's own restart would take
    assert state() == "dead" and state("zlh-game") == "S"
    launch.meddle(home, "agent:10007", "revive")
    assert state() == "S"
    launch.meddle(home, "agent:10007", "freeze")
    launch.meddle(home, "agent:10007", "kill")
    assert state() == "dead", "a frozen one dies, too"
    with pytest.raises(BadInput, match="real agents play no slow"):
        launch.fault(home, "agent:10007", "slow")
    launch.meddle(home, "agent:10007", "crash")
    until(lambda: state("zlh-game") == "dead")
    with pytest.raises(BadInput, match="nothing runs"):
        launch.meddle(home, "agent:10007", "crash")


def test_the_product_can_read_its_environment(fleet: Fleet) -> None:
    values = launch.env(fleet.state)
    loaded = settings.load(values)
    assert loaded.ansible.runner == "ansible" and loaded.agent.port == 18_888
    assert loaded.network.gateway == f"{fleet.network}.1" and loaded.network.control_addresses == (f"{fleet.network}.1",)
    assert loaded.ansible.node_addresses == ("pve1=127.0.0.1", "pve2=127.0.0.2") and loaded.ansible.node_user == "zlh-node"
    assert loaded.ansible.private_key is not None and loaded.ansible.private_key.stat().st_mode & 0o777 == 0o600
    assert loaded.ansible.node_known_hosts is not None and "ZLH_ANSIBLE__LAB_TOKEN" not in values
    assert [n["address"] for n in fleet.state.nodes] == ["127.0.0.1", "127.0.0.2"]


def test_a_container_reaches_the_artifacts_and_nothing_else_of_the_lab(fleet: Fleet) -> None:
    fleet.container(10008)
    url = fleet.state.endpoints["artifacts"]["url"]
    assert url.startswith(f"http://{fleet.network}.1:")
    fetch = "import json, urllib.request; print(len(json.load(urllib.request.urlopen('%s/catalog.json', timeout=5))['artifacts']))"
    assert int(fleet.inside(10008, f'python3 -c "{fetch % url}"')) > 0
    for part, name in (("proxmox", "address"), ("bridge", "url"), ("discord", "url")):
        port = fleet.state.endpoints[part][name].rpartition(":")[2]
        probe = f"import socket; socket.create_connection(('{fleet.network}.1', {port}), 2)"
        assert fleet.inside(10008, f'python3 -c "{probe}" 2>/dev/null && echo open || echo closed') == "closed", part


def test_the_other_fleet_is_refused_while_this_one_runs(fleet: Fleet) -> None:
    with pytest.raises(Conflict, match="runs fleet lxc, not sim"):
        launch.up(fleet.state.directory, fleet="sim")
    assert launch.up(fleet.state.directory).pid == fleet.state.pid
