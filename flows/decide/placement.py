"""On which node a new container goes. Pure; the creation transaction calls it with every node's row locked.

The node with the largest share of memory left afterwards wins, so that the fleet spreads; then the larger share of disk, then the name.
"""

from __future__ import annotations

from collections.abc import Sequence

from flows.domain.node import NodeUsage
from flows.domain.placement import Headroom, Placement, PlacementRequest
from flows.errors import BadInput, Conflict


def place(request: PlacementRequest, nodes: Sequence[NodeUsage], headroom: Headroom | None = None) -> Placement:
    """Raises BadInput (``flavor``) where no node has a template for it, Conflict of kind ``no_capacity`` where none has room."""
    room = headroom or Headroom()
    able = [usage for usage in nodes if request.flavor in usage.node.templates]
    if nodes and not able:
        known = sorted({flavor for usage in nodes for flavor in usage.node.templates})
        raise BadInput("flavor", request.flavor, why="no node has a template of it", remedy=f"choose one of {', '.join(known) or 'none'}")
    best = max((usage for usage in able if _fits(request, usage, room)), key=lambda usage: _preference(request, usage, room), default=None)
    if best is None:
        raise Conflict(
            "placement",
            why=f"no open node has {request.memory_mb} MB, {request.disk_gb} GB and {request.cores} cores to promise",
            remedy="delete servers, add a node, or open one",
            kind="no_capacity",
        )
    node = best.node
    return Placement(node.name, node.storage, node.bridge, node.templates[request.flavor])


def _fits(request: PlacementRequest, usage: NodeUsage, room: Headroom) -> bool:
    return (
        usage.node.open
        and request.cores <= usage.node.cores
        and usage.used_memory_mb + request.memory_mb <= room.memory_of(usage.node)
        and usage.used_disk_gb + request.disk_gb <= room.disk_of(usage.node)
    )


def _preference(request: PlacementRequest, usage: NodeUsage, room: Headroom) -> tuple[float, float, tuple[int, ...]]:
    memory, disk = room.memory_of(usage.node), room.disk_of(usage.node)
    return (
        (memory - usage.used_memory_mb - request.memory_mb) / memory,
        (disk - usage.used_disk_gb - request.disk_gb) / disk,
        tuple(-ord(c) for c in usage.node.name),
    )
