"""What fleet ``lxc`` is configured with, what it asks of the machine, and what the product is told; nothing real is started."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import settings
from flows.errors import BadInput, Permanent
from flows.lab import launch, needs, program, wiring
from flows.lab.__main__ import aside
from flows.lab.config import LabConfig
from flows.lab.substance import Records
from flows.lab.world import World

ENDPOINTS = {
    "proxmox": {"address": "127.0.0.1:1", "ca_file": "/ca.pem"},
    "agents": {"pool": "10.213.5.0/24", "port": "18888"},
    "bridge": {"url": "http://127.0.0.1:2", "players": "127.0.0.1:3"},
    "dns": {"server": "127.0.0.1:4", "zone": "play.example"},
    "discord": {"webhooks": "http://127.0.0.1:5"},
    "artifacts": {"url": "http://10.213.5.1:6"},
    "node": {"port": "7", "user": "zlh-node", "addresses": "pve1=127.0.0.1,pve2=127.0.0.2", "known_hosts": "/known", "private_key": "/key"},
}


def test_what_is_generated_is_valid_and_of_the_directory(tmp_path: Path) -> None:
    tree = wiring.generated(tmp_path, "lxc")
    config = LabConfig.model_validate(tree)
    assert config.lxc is not None and config.fleet == "lxc" and config.directory == tmp_path
    network = ipaddress.IPv4Network(config.lxc.network)
    assert network.prefixlen == 24 and network.subnet_of(wiring.NETWORKS) and config.lxc.gateway == str(network[1])
    assert config.artifacts.bind == f"{network[1]}:0" and "runner" not in config.parts and "node" in config.parts
    assert {n.address for n in config.proxmox.nodes} == {"127.0.0.1", "127.0.0.2"} and {t.memory_mb for t in config.proxmox.templates} == {512}
    assert wiring.generated(tmp_path)["proxmox"].get("nodes") is None and "lxc" not in wiring.generated(tmp_path)


def test_the_network_is_the_directorys_unless_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "_routes", lambda: [ipaddress.IPv4Network("0.0.0.0/0")])
    first = wiring.free_network(Path("/lab/one"))
    assert first == wiring.free_network(Path("/lab/one")) != wiring.free_network(Path("/lab/two"))
    monkeypatch.setattr(wiring, "_routes", lambda: [first])
    assert not wiring.free_network(Path("/lab/one")).overlaps(first)
    config: dict[str, Any] = {"fleet": "lxc", "lxc": {"network": str(first)}, "artifacts": {"bind": f"{first[1]}:80"}}
    wiring.choose_network(config, Path("/lab/one"))
    moved = ipaddress.IPv4Network(config["lxc"]["network"])
    assert moved != first and wiring.follow_network(config)["artifacts"]["bind"] == f"{moved[1]}:80"
    monkeypatch.setattr(wiring, "_routes", lambda: [wiring.NETWORKS])
    with pytest.raises(Permanent, match=r"lxc\.network"):
        wiring.free_network(Path("/lab/one"))


def test_routes_are_read_as_the_kernel_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\nbr0\t0005D50A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    monkeypatch.setattr(Path, "read_text", lambda _: table)
    assert wiring._routes() == [ipaddress.IPv4Network("10.213.5.0/24")]


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"fleet": "lxc"}, "lxc: belongs to fleet lxc"),
        ({"lxc": {"network": "10.213.5.0/24"}}, "lxc: belongs to fleet lxc"),
        ({"fleet": "lxc", "lxc": {"network": "8.8.8.0/24"}}, "private IPv4"),
        ({"fleet": "lxc", "lxc": {"network": "127.0.0.0/24"}}, "private IPv4"),
        ({"fleet": "lxc", "lxc": {"network": "10.213.5.0/30"}}, "16 addresses"),
        ({"fleet": "lxc", "lxc": {"network": "10.213.5.0/24"}, "artifacts": {"bind": "10.213.6.1:0"}}, "the bridge's"),
        ({"artifacts": {"bind": "10.213.5.1:0"}}, "artifacts.bind"),
        ({"artifacts": {"bind": "0.0.0.0:0"}}, "artifacts.bind"),
    ],
)
def test_configurations_that_are_refused(lab_config: Callable[..., LabConfig], tmp_path: Path, sections: dict[str, Any], why: str) -> None:
    tree = {**json.loads(json.dumps(wiring.generated(tmp_path))), **sections}
    with pytest.raises(ValueError, match=why):
        LabConfig.model_validate(tree)


def test_what_the_product_is_told(tmp_path: Path) -> None:
    config = wiring.generated(tmp_path, "lxc")
    config["lxc"]["network"] = "10.213.5.0/24"
    points = {**ENDPOINTS, "proxmox": {**ENDPOINTS["proxmox"], "ca_file": str(tmp_path / "ca")}}
    values = wiring.env(config, points, ("http://127.0.0.1:9", "token"))
    loaded = settings.load(values)
    assert (loaded.ansible.runner, loaded.ansible.node_port, loaded.agent.port) == ("ansible", 7, 18_888)
    assert loaded.ansible.node_addresses == ("pve1=127.0.0.1", "pve2=127.0.0.2") and loaded.network.pool == "10.213.5.0/24"
    assert loaded.network.control_addresses == ("10.213.5.1",) and not any("LAB_" in name for name in values)


def test_a_machine_that_lacks_something(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Permanent, match="zlh lab up --fleet sim"):
        needs.require()
    with pytest.raises(Permanent, match="root"):
        launch.up(tmp_path, fleet="lxc")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda program, path=None: None if program in ("knotd", "npm") else f"/usr/bin/{program}")
    with pytest.raises(Permanent, match=r"knotd, npm.*apt-get install knot npm; .*playbooks/lab\.yml"):
        needs.require()
    assert needs.missing() == {"knotd": "knot", "npm": "npm"}


def test_every_package_that_is_named_is_one_that_the_playbook_installs() -> None:
    book = (Path(__file__).parents[3] / "playbooks" / "lab.yml").read_text()
    essential = {"util-linux", "openssh-client"}  # part of every Debian, or a dependency of what it installs
    assert [p for p in set(needs.PROGRAMS.values()) - essential if p not in book] == []


def test_an_unknown_fleet(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="choose sim or lxc"):
        launch.up(tmp_path, fleet="qemu")


def test_progress_is_told_without_its_head(tmp_path: Path) -> None:
    (tmp_path / "lab.log").write_text("2026-01-01 00:00:00,000 INFO flows.lab of an earlier run\n")
    said: list[str] = []
    progress = program.Progress(tmp_path, said.append)
    with (tmp_path / "lab.log").open("a") as log:
        log.write("2026-01-01 00:00:01,000 INFO flows.lab building an image\n2026-01-01 00:00:01,000 INFO asyncio noise\nno line of ours\n2026-01")
    progress.tell()
    with (tmp_path / "lab.log").open("a") as log:
        log.write("-01 00:00:02,000 INFO flows.lab.lxc.image done\n2026-01-01 00:00:02,000 ERROR flows.lab broken\n")
    progress.tell()
    assert said == ["building an image", "done"]


async def test_long_work_aside() -> None:
    done: list[int] = []
    await aside(lambda: done.append(1))
    assert done == [1]

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await aside(fail)


def test_an_end_does_not_wait_for_work_aside() -> None:
    code = "import asyncio, time; from flows.lab.__main__ import aside; asyncio.run(asyncio.wait_for(aside(lambda: time.sleep(50)), 0.1))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1 and "TimeoutError" in ended.stderr


async def test_what_stands_behind_a_world_by_default() -> None:
    world = World()
    assert isinstance(world.substance, Records)
    await world.substance.open()
    await world.substance.close()
