"""``/nodes`` and what the face knows of one node."""

from __future__ import annotations

import time
from typing import Any

from flows.lab.proxmox import guest
from flows.lab.proxmox.params import BOOL, P
from flows.lab.proxmox.routing import Call, route
from flows.lab.proxmox.views import memory_used, node_view

_IFACES = "bridge bond eth alias vlan fabric OVSBridge OVSBond OVSPort OVSIntPort vnet any_bridge any_local_bridge include_sdn".split()


@route("GET", "/nodes")
async def nodes(call: Call) -> Any:
    return [node_view(call.cluster, n, detailed=call.identity.may(f"/nodes/{n.name}", "Sys.Audit")) for n in call.cluster.world.nodes.values()]


@route("GET", "/nodes/{node}/status", ("/nodes/{node}", "Sys.Audit"))
async def status(call: Call) -> Any:
    node = call.cluster.world.nodes[call.node]
    total, used = node.memory_mb * guest.MIB, memory_used(call.cluster, node)
    allocated = sum(guest.disk_bytes(c.config) for c in call.cluster.on(node.name))
    disk = node.disk_gb * guest.GIB
    return {
        "cpu": 0.02,
        "wait": 0,
        "idle": 0,
        "uptime": int(time.time() - call.cluster.started) + 86_400,
        "loadavg": ["0.10", "0.12", "0.09"],
        "cpuinfo": {"cpus": node.cores, "cores": node.cores, "sockets": 1, "model": "lab"},
        "memory": {"total": total, "used": used, "free": total - used, "available": total - used},
        "swap": {"total": 0, "used": 0, "free": 0},
        "rootfs": {"total": disk, "used": allocated // 8, "free": disk - allocated // 8, "avail": disk - allocated // 8},
        "current-kernel": {"sysname": "Linux", "release": "6.14.11-4-pve", "version": "#1 SMP lab", "machine": "x86_64"},
        "boot-info": {"mode": "efi", "secureboot": 0},
        "kversion": "Linux 6.14.11-4-pve #1 SMP lab",
        "pveversion": f"pve-manager/{call.cluster.config.version}/0123456789abcdef",
    }


@route("GET", "/nodes/{node}/time", ("/nodes/{node}", "Sys.Audit"))
async def clock(call: Call) -> Any:
    now = int(time.time())
    return {"timezone": "UTC", "time": now, "localtime": now}


@route("GET", "/nodes/{node}/network", params={"type": P(enum=tuple(_IFACES))})
async def network(call: Call) -> Any:
    wanted = call.params.get("type")
    address = next((n.address for n in call.cluster.config.nodes if n.name == call.node), "127.0.0.1")
    bridges: list[dict[str, Any]] = []
    for number, name in enumerate(call.cluster.config.bridges):
        bridge = {"iface": name, "type": "bridge", "active": 1, "autostart": 1, "method": "static", "method6": "manual", "families": ["inet"]}
        bridge |= {"bridge_ports": "eno1" if number == 0 else "", "bridge_stp": "off", "bridge_fd": "0", "priority": 4 + number}
        if number == 0:
            bridge |= {"address": address, "netmask": "8", "cidr": f"{address}/8", "gateway": "127.0.0.1"}
        bridges.append(bridge)
    card = {"iface": "eno1", "type": "eth", "active": 1, "exists": 1, "method": "manual", "method6": "manual", "families": ["inet"], "priority": 3}
    if wanted in ("bridge", "any_bridge", "any_local_bridge"):
        return bridges
    return [card] if wanted == "eth" else ([card, *bridges] if wanted in (None, "include_sdn") else [])


@route("GET", "/nodes/{node}/qemu", params={"full": BOOL})
async def qemu(call: Call) -> Any:
    return []
