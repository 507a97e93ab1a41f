"""lxc's configuration of one container, from its record. Pure: what a record says is validated before it stands in a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

from flows.lab.lxc.cgroups import Limits
from flows.lab.substance import SubstanceError

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_MAC = re.compile(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9]{0,14}")
#: As Debian's own configuration of containers: null, zero, full, tty, console, ptmx, random, urandom, pts.
_DEVICES = (
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 136:* rwm",
)


@dataclass(frozen=True)
class Card:
    """``net0`` of a record. ``address`` None: none is set; ``gateway`` None: no default route."""

    name: str = "eth0"
    address: IPv4Interface | None = None
    gateway: str | None = None
    mac: str = ""


def card(text: str, network: IPv4Network, mac: str) -> Card | None:
    """None where the record has no card; ``mac`` is for one that has no hardware address. Raises SubstanceError
    naming the part that is wrong: an address outside ``network`` cannot be reached,
    and the network's first one is the bridge's."""
    if not text:
        return None
    parts = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    name, mac, ip, gateway = parts.get("name", "eth0"), parts.get("hwaddr", mac), parts.get("ip", "manual"), parts.get("gw")
    if _INTERFACE.fullmatch(name) is None:
        raise SubstanceError(f"net0: name={name[:40]!r} is no interface's name · use letters and digits")
    if _MAC.fullmatch(mac) is None:
        raise SubstanceError(f"net0: hwaddr={mac[:40]!r} is no MAC address · leave it out")
    if ip in ("manual", "dhcp"):
        return Card(name, None, None, mac)
    try:
        address = IPv4Interface(ip)
        gate = IPv4Interface(gateway).ip if gateway else None
    except ValueError as error:
        raise SubstanceError(f"net0: {error} · write ip=ADDRESS/LENGTH,gw=ADDRESS") from None
    if address.ip not in network:
        raise SubstanceError(f"net0: {address.ip} is outside the lab's network {network} · choose an address in it")
    if address.ip in (network[0], network[1], network[-1]):
        raise SubstanceError(f"net0: {address.ip} is the bridge's or the network's own · choose another in {network}")
    if gate is not None and gate not in address.network:
        raise SubstanceError(f"net0: gateway {gate} is outside {address.network} · use {network[1]}")
    return Card(name, address, str(gate) if gate else None, mac)


def hostname(config: Mapping[str, Any], vmid: int) -> str:
    """As Proxmox: ``CT<vmid>`` where none is set."""
    name = str(config.get("hostname") or f"CT{vmid}")
    if len(name) > 253 or _HOSTNAME.fullmatch(name) is None:
        raise SubstanceError(f"hostname: {name[:60]!r} is no host name · use letters, digits and hyphens")
    return name


def wants(config: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Memory in MiB and cores; None: no limit. ``cpulimit`` wins over ``cores``."""
    try:
        memory = int(config["memory"]) if config.get("memory") else None
        cores = float(config.get("cpulimit") or config.get("cores") or 0) or None
    except (TypeError, ValueError):
        raise SubstanceError("memory, cores or cpulimit is no number · correct the container's configuration") from None
    if (memory is not None and memory < 16) or (cores is not None and cores < 0.01):
        raise SubstanceError("memory below 16 MiB or cores below 0.01 · nothing could start")
    return memory, cores


def text(
    *,
    name: str,
    host: str,
    root: str,
    net: Card | None,
    bridge: str,
    veth: str,
    limits: Sequence[Limits],
    devices: str | None,
    console: str,
) -> str:
    """``root`` is lxc.rootfs.path: ``overlay:LOWER:UPPER`` or ``dir:PATH``; ``console`` the file that gets what its init says, at most 128 kB of
    it. Every argument has been validated."""
    lines = [
        f"lxc.uts.name = {host}",
        f"lxc.rootfs.path = {root}",
        "lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed",
        "lxc.apparmor.profile = unconfined",
        "lxc.cap.drop = mac_admin mac_override sys_time sys_module sys_rawio linux_immutable",
        "lxc.autodev = 1",
        "lxc.tty.max = 0",
        "lxc.pty.max = 1024",
        f"lxc.console.logfile = {console}",
        "lxc.console.size = 128KB",
        "lxc.signal.halt = SIGRTMIN+3",
        "lxc.signal.reboot = SIGINT",
        f"lxc.cgroup.dir.monitor = lxc.monitor.{name}",
        f"lxc.cgroup.dir.container = lxc.payload.{name}",
        "lxc.environment = container=lxc",
    ]
    if net is None:
        lines.append("lxc.net.0.type = empty")
    else:
        lines += ["lxc.net.0.type = veth", f"lxc.net.0.link = {bridge}", f"lxc.net.0.veth.pair = {veth}", f"lxc.net.0.name = {net.name}"]
        lines.append("lxc.net.0.flags = up")
        lines.append(f"lxc.net.0.hwaddr = {net.mac}")
        if net.address:
            lines.append(f"lxc.net.0.ipv4.address = {net.address}")
        if net.gateway:
            lines.append(f"lxc.net.0.ipv4.gateway = {net.gateway}")
    if devices:
        lines += [f"{devices}.deny = a", *(f"{devices}.allow = {rule}" for rule in _DEVICES)]
    lines += [f"{group.prefix}.{key} = {value}" for group in limits for key, value in group.values]
    return "\n".join(lines) + "\n"
