"""How containers and nodes look in listings. Sizes are bytes, times seconds."""

from __future__ import annotations

import time
from typing import Any

from flows.lab.proxmox import guest
from flows.lab.proxmox.cluster import Cluster
from flows.lab.world import LabContainer, LabNode


def container_view(container: LabContainer) -> dict[str, Any]:
    """What ``status/current`` and the listings have in common. The use of memory and disk is made up, but steady."""
    config, running = container.config, container.status == "running"
    memory, disk = int(config.get("memory", 512)) * guest.MIB, guest.disk_bytes(config)
    view: dict[str, Any] = {
        "vmid": container.vmid,
        "name": config.get("hostname", f"CT{container.vmid}"),
        "status": container.status,
        "cpus": config.get("cores", 1),
        "cpu": 0.01 if running else 0,
        "mem": memory // 4 if running else 0,
        "maxmem": memory,
        "swap": 0,
        "maxswap": int(config.get("swap", 512)) * guest.MIB,
        "disk": disk // 8 if running else 0,
        "maxdisk": disk,
        "uptime": int(time.time() - container.started_at) if running and container.started_at is not None else 0,
        "netin": 0,
        "netout": 0,
        "diskread": 0,
        "diskwrite": 0,
    }
    if config.get("tags"):
        view["tags"] = config["tags"]
    if container.lock:
        view["lock"] = container.lock
    if container.template:
        view["template"] = 1
    if running:
        view["pid"] = 100_000 + container.vmid
    return view


def memory_used(cluster: Cluster, node: LabNode) -> int:
    """Bytes of a node's memory that its running containers use."""
    return sum(int(c.config.get("memory", 512)) for c in cluster.on(node.name) if c.status == "running") * guest.MIB // 4


def node_view(cluster: Cluster, node: LabNode, *, detailed: bool) -> dict[str, Any]:
    """``detailed`` is for callers with Sys.Audit on the node; others see its name and whether it is online."""
    view: dict[str, Any] = {"id": f"node/{node.name}", "type": "node", "node": node.name, "status": "online" if node.online else "offline"}
    if not detailed:
        return view
    view |= {"level": "", "ssl_fingerprint": cluster.fingerprint}
    if node.online:
        view |= {
            "cpu": 0.02,
            "maxcpu": node.cores,
            "mem": memory_used(cluster, node),
            "maxmem": node.memory_mb * guest.MIB,
            "disk": 8 * guest.GIB,
            "maxdisk": 100 * guest.GIB,
            "uptime": int(time.time() - cluster.started) + 86_400,
        }
    return view
