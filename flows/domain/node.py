"""Nodes: the Proxmox hosts that containers are placed on, and how full our own reservations make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Node:
    """Capacity that we may hand out. ``templates`` maps a flavor to its template's VMID; ``open`` takes new servers."""

    name: str
    memory_mb: int
    disk_gb: int
    cores: int
    storage: str
    bridge: str
    templates: Mapping[str, int] = field(default_factory=dict)
    open: bool = True


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """A node and what servers that are neither deleted nor cleanly failed have reserved on it."""

    node: Node
    used_memory_mb: int = 0
    used_disk_gb: int = 0
    used_cores: int = 0
    servers: int = 0
