"""The lab's own network: a bridge with the network's first address, without a way to the outside."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from flows.lab.lxc.programs import Programs
from flows.lab.substance import SubstanceError

_SYSCTL = Path("/proc/sys/net")
_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


def conflict(routes: Sequence[Mapping[str, Any]], network: IPv4Network, bridge: str) -> str | None:
    """The route, as ``ip -j route`` has it, by which ``network`` or a part of it is already reached over something else; default routes do
    not count."""
    for route in routes:
        dst = str(route.get("dst", "default"))
        if dst == "default" or route.get("dev") == bridge:
            continue
        with contextlib.suppress(ValueError):
            if IPv4Network(dst, strict=False).prefixlen and IPv4Network(dst, strict=False).overlaps(network):
                return f"{dst} over {route.get('dev', 'nothing')}"
    return None


async def up(name: str, network: IPv4Network, programs: Programs) -> None:
    """The bridge exists and is up. Raises SubstanceError where the network is in use elsewhere on this machine, another lab included."""
    if network.prefixlen > 29 or not any(network.subnet_of(private) for private in _PRIVATE):
        raise SubstanceError(f"network {network}: must be private (RFC 1918) and /29 or larger · for instance 10.213.0.0/24")
    await _refuse(name, network, programs)
    await programs.do("ip", "link", "add", name, "type", "bridge", timeout_s=10, what=f"bridge {name}")
    # Nothing that comes from the bridge is forwarded, whatever the host does for others; and no IPv6 at all.
    for file, value in ((f"ipv6/conf/{name}/disable_ipv6", "1"), (f"ipv4/conf/{name}/forwarding", "0")):
        if (_SYSCTL / file).exists():
            try:
                (_SYSCTL / file).write_text(value)
            except OSError as error:
                raise SubstanceError(f"bridge {name}: {file}: {error}") from error
    await programs.do("ip", "address", "add", f"{network[1]}/{network.prefixlen}", "dev", name, timeout_s=10, what=f"bridge {name}")
    await programs.do("ip", "link", "set", name, "up", timeout_s=10, what=f"bridge {name}")
    await _refuse(name, network, programs)  # another lab may have come at the same moment: both step back


async def _refuse(name: str, network: IPv4Network, programs: Programs) -> None:
    routes = json.loads(await programs.do("ip", "-j", "-4", "route", "show", "table", "all", timeout_s=10) or b"[]")
    if other := conflict(routes, network, name):
        raise SubstanceError(f"network {network} is already in use: {other} · give the lab another network")
