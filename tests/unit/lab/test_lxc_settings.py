"""A container's configuration from its record."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flows.lab.lxc import bridge, cgroups, settings
from flows.lab.lxc.cgroups import Hierarchies, Limits
from flows.lab.lxc.ruins import mounts_below
from flows.lab.substance import SubstanceError

NETWORK = IPv4Network("10.213.7.0/24")
MAC = "02:00:00:00:00:01"
HYBRID = """\
30 20 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
34 30 0:30 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
35 30 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def test_card() -> None:
    text = "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=10.213.7.9/24,gw=10.213.7.1,type=veth,firewall=1"
    assert settings.card(text, NETWORK, MAC) == settings.Card("eth0", IPv4Interface("10.213.7.9/24"), "10.213.7.1", "BC:24:11:00:00:01")
    assert settings.card("name=eth0,ip=10.213.7.9/24", NETWORK, MAC) == settings.Card("eth0", IPv4Interface("10.213.7.9/24"), None, MAC)
    assert settings.card("name=eth1,bridge=vmbr0,ip=dhcp", NETWORK, MAC) == settings.Card("eth1", None, None, MAC)
    assert settings.card("", NETWORK, MAC) is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ip=10.9.0.1/24", "10.9.0.1 is outside"),
        ("ip=10.213.7.1/24", "10.213.7.1 is the bridge's"),
        ("ip=10.213.7.0/24", "10.213.7.0"),
        ("ip=10.213.7.255/24", "10.213.7.255"),
        ("ip=ten/24", "ten"),
        ("ip=10.213.7.9/24,gw=10.0.0.1", "gateway 10.0.0.1"),
        ("ip=10.213.7.9/24,gw=x", "x"),
        ("name=eth0\nlxc.hook.start = /x,ip=10.213.7.9/24", "name="),
        ("name=a/b,ip=dhcp", "name="),
        ("hwaddr=BC:24\n,ip=dhcp", "hwaddr="),
    ],
)
def test_refused_cards(text: str, names: str) -> None:
    with pytest.raises(SubstanceError) as caught:
        settings.card(text, NETWORK, MAC)
    assert names in str(caught.value) and "\n" not in str(caught.value)


def test_host_name() -> None:
    assert settings.hostname({"hostname": "alpha.example"}, 100) == "alpha.example"
    assert settings.hostname({}, 100) == "CT100"
    for bad in ("a b", "-a", "a\nlxc.x = y", "a" * 254, "ä", "a..b", "a\n"):
        with pytest.raises(SubstanceError, match="hostname"):
            settings.hostname({"hostname": bad}, 100)


@pytest.mark.parametrize(
    ("config", "wants"),
    [
        ({}, (None, None)),
        ({"memory": "512", "cores": 2}, (512, 2.0)),
        ({"memory": 512, "cores": 4, "cpulimit": "1.5"}, (512, 1.5)),
        ({"cpulimit": 0, "cores": 0}, (None, None)),
    ],
)
def test_wants(config: dict[str, Any], wants: tuple[int | None, float | None]) -> None:
    assert settings.wants(config) == wants


@pytest.mark.parametrize("config", [{"memory": "much"}, {"memory": 8}, {"cores": -1}, {"cpulimit": [1]}])
def test_refused_wants(config: dict[str, Any]) -> None:
    with pytest.raises(SubstanceError, match="memory"):
        settings.wants(config)


def test_text() -> None:
    made = settings.text(
        name="zlh0-100",
        host="alpha",
        root="overlay:/image:/upper",
        net=settings.card("ip=10.213.7.9/24,gw=10.213.7.1", NETWORK, MAC),
        bridge="zlh0",
        veth="v0",
        limits=[Limits("lxc.cgroup2", (("memory.max", "1048576"),))],
        devices="lxc.cgroup2.devices",
        console="/lab/console",
    )
    lines = made.splitlines()
    for line in (
        "lxc.uts.name = alpha",
        "lxc.rootfs.path = overlay:/image:/upper",
        "lxc.net.0.link = zlh0",
        "lxc.net.0.ipv4.address = 10.213.7.9/24",
        "lxc.net.0.ipv4.gateway = 10.213.7.1",
        f"lxc.net.0.hwaddr = {MAC}",
        "lxc.cgroup2.memory.max = 1048576",
        "lxc.cgroup.dir.container = lxc.payload.zlh0-100",
    ):
        assert line in lines
    assert lines.index("lxc.cgroup2.devices.deny = a") < lines.index("lxc.cgroup2.devices.allow = c 1:3 rwm")
    none = settings.text(name="n", host="h", root="dir:/r", net=None, bridge="b", veth="v", limits=[], devices=None, console="/c")
    assert "lxc.net.0.type = empty" in none and "devices" not in none


def test_limits_of_either_version() -> None:
    hybrid = cgroups.parse(HYBRID, "")
    assert hybrid.v1 == {"cpu", "memory", "devices"} and hybrid.mounts[-1] == Path("/sys/fs/cgroup/unified")
    assert hybrid.devices == "lxc.cgroup.devices"
    assert hybrid.limits(64, 1.5) == [Limits("lxc.cgroup", (("memory.limit_in_bytes", "67108864"), ("cpu.cfs_quota_us", "150000")))]
    assert hybrid.limits(None, None) == [Limits("lxc.cgroup", (("memory.limit_in_bytes", "-1"), ("cpu.cfs_quota_us", "-1")))]
    unified = cgroups.parse(UNIFIED, "cpuset cpu io memory pids")
    assert unified.devices == "lxc.cgroup2.devices"
    assert unified.limits(64, 2) == [Limits("lxc.cgroup2", (("memory.max", "67108864"), ("cpu.max", "200000 100000")))]
    assert unified.limits(None, None) == [Limits("lxc.cgroup2", (("memory.max", "max"), ("cpu.max", "max 100000")))]
    assert Hierarchies(frozenset(), frozenset(), ()).limits(64, 1) == []


@pytest.mark.parametrize(
    ("route", "conflicts"),
    [
        ({"dst": "default", "dev": "eth0"}, False),
        ({"dst": "10.213.0.0/16", "dev": "eth0"}, True),
        ({"dst": "10.213.7.128/25", "dev": "docker0"}, True),
        ({"dst": "10.213.7.5", "dev": "lo", "type": "local"}, True),
        ({"dst": "10.213.8.0/24", "dev": "eth0"}, False),
        ({"dst": "10.213.7.0/24", "dev": "zlh0"}, False),
        ({"dst": "10.213.0.0/16", "type": "blackhole"}, True),
        ({"dst": "0.0.0.0/0", "dev": "eth0"}, False),
    ],
)
def test_network_in_use(route: dict[str, Any], conflicts: bool) -> None:
    assert (bridge.conflict([route], NETWORK, "zlh0") is not None) is conflicts


def test_mounts_below() -> None:
    text = "1 0 0:1 / /lab/lxc/a rw - x y rw\n2 0 0:1 / /lab/lxc/a/b\\040c rw - x y rw\n3 0 0:1 / /lab/lxc2 rw - x y rw\n4 0 0:1 / /lab rw - x y rw\n"
    assert mounts_below(text, Path("/lab/lxc")) == ["/lab/lxc/a/b c", "/lab/lxc/a"]
