"""What placement is asked and what it answers. ``flows.decide.placement`` decides; the creation transaction reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

from flows.domain.node import Node


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """A container wanted somewhere."""

    flavor: str
    memory_mb: int
    disk_gb: int
    cores: int


@dataclass(frozen=True, slots=True)
class Headroom:
    """What is never promised to customers. A container's memory is a hard promise, its disk grows into what it was promised,
    its cores are only a ceiling: cores are limited per container, not summed."""

    memory_mb: int = 2_048
    memory_fraction: float = 0.05
    disk_fraction: float = 0.10

    def memory_of(self, node: Node) -> int:
        """Memory of a node that may be promised, MB."""
        return max(0, node.memory_mb - max(self.memory_mb, int(node.memory_mb * self.memory_fraction)))

    def disk_of(self, node: Node) -> int:
        """Disk of a node that may be promised, GB."""
        return int(node.disk_gb * (1 - self.disk_fraction))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a container goes."""

    node: str
    storage: str
    bridge: str
    template_vmid: int
