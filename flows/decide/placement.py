"""On which node a new container goes. Pure; the creation transaction calls it with every node's row locked.

The node with the largest share of memory left afterwards wins, so that the fleet spreads; then the larger share of disk, then the name.
"""

from __future__ import annotations

from collections.abc import Sequence

from flows.domain.placement import Headroom, NodeUsage, Placement, PlacementRequest
from flows.errors import BadInput, Conflict


def place(request: PlacementRequest, nodes: Sequence[NodeUsage], headroom: Headroom | None = None) -> Placement:
    """Raises BadInput (``flavor``) where no node has a template for it, Conflict of kind ``no_capacity`` where none has room."""
    room = headroom or Headroom()
    able = [node for node in nodes if request.flavor in node.templates]
    if nodes and not able:
        known = sorted({flavor for node in nodes for flavor in node.templates})
        raise BadInput("flavor", request.flavor, why="no node has a template of it", remedy=f"choose one of {', '.join(known) or 'none'}")
    best = max((node for node in able if _fits(request, node, room)), key=lambda node: _preference(request, node, room), default=None)
    if best is None:
        raise Conflict(
            "placement",
            why=f"no open node has {request.memory_mb} MB, {request.disk_gb} GB and {request.cores} cores to promise",
            remedy="delete servers, add a node, or open one",
            kind="no_capacity",
        )
    return Placement(best.name, best.storage, best.bridge, best.templates[request.flavor])


def _fits(request: PlacementRequest, node: NodeUsage, room: Headroom) -> bool:
    return (
        node.open
        and request.cores <= node.cores
        and node.used_memory_mb + request.memory_mb <= room.memory_of(node)
        and node.used_disk_gb + request.disk_gb <= room.disk_of(node)
    )


def _preference(request: PlacementRequest, node: NodeUsage, room: Headroom) -> tuple[float, float, tuple[int, ...]]:
    memory, disk = room.memory_of(node), room.disk_of(node)
    return (
        (memory - node.used_memory_mb - request.memory_mb) / memory,
        (disk - node.used_disk_gb - request.disk_gb) / disk,
        tuple(-ord(c) for c in node.name),
    )
