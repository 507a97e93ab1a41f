"""Nodes and how full they are. Called by ``zlh hosts``, the front door (placement) and the digest."""

from __future__ import annotations

import re

from sqlalchemy import func, select

from flows.domain.node import Node, NodeUsage
from flows.errors import BadInput
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.servers import COUNTED
from flows.state.upsert import upsert

#: What Proxmox calls nodes (host names), storages and bridges (network interfaces).
_NAMES = {
    "name": re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"),
    "storage": re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}[A-Za-z0-9]"),
    "bridge": re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}"),
}
#: What the tables hold.
_MOST = 2**31 - 1
_COLUMNS = ("memory_mb", "disk_gb", "cores", "storage", "bridge", "templates", "open")


_S = t.servers.c
_SUMS = (
    select(
        _S.node,
        func.sum(_S.memory_mb).label("memory"),
        func.sum(_S.disk_gb).label("disk"),
        func.sum(_S.cores).label("cores"),
        func.count().label("servers"),
    )
    .where(_S.state.in_(COUNTED))
    .group_by(_S.node)
)


async def put(tx: Tx, node: Node) -> None:
    """Creates or replaces a node. Raises BadInput."""
    _check(node)
    row = {"name": node.name} | {c: getattr(node, c) for c in _COLUMNS} | {"templates": dict(node.templates)}
    await upsert(tx, t.nodes, [row], key="name", update=_COLUMNS)


def _check(node: Node) -> None:
    """A wrong number here would place servers where there is no room, or none at all."""
    for field in ("memory_mb", "disk_gb", "cores"):
        value = getattr(node, field)
        if not 1 <= value <= _MOST:
            raise BadInput(field, value, why=f"must be between 1 and {_MOST}", remedy="say what may be handed out to servers")
    for field, form in _NAMES.items():
        if form.fullmatch(getattr(node, field)) is None:
            remedy = "as pvesh get /nodes, pvesm status and ip link call it"
            raise BadInput(field, getattr(node, field), why=f"can be no {field} of Proxmox", remedy=remedy)
    for flavor, vmid in node.templates.items():
        if not 100 <= vmid <= 999_999_999:
            raise BadInput("templates", f"{flavor}={vmid}", why="is no VMID", remedy="Proxmox counts from 100 to 999999999")


async def list_(tx: Tx, *, lock: bool = False) -> list[Node]:
    """All, by name. ``lock`` holds the rows until the transaction ends: placements then happen one after the other."""
    query = select(t.nodes).order_by(t.nodes.c.name)
    rows = await tx.execute(query.with_for_update() if lock else query)
    return [Node(r.name, r.memory_mb, r.disk_gb, r.cores, r.storage, r.bridge, dict(r.templates), r.open) for r in rows]


async def usage(tx: Tx, *, lock: bool = False) -> list[NodeUsage]:
    """Every node with what its counted servers reserve: two statements, however many servers there are."""
    nodes = await list_(tx, lock=lock)  # before the sums, or they could miss what the last holder of the lock placed
    used = {r.node: r for r in await tx.execute(_SUMS)}
    return [
        NodeUsage(n, int(u.memory), int(u.disk), int(u.cores), int(u.servers)) if (u := used.get(n.name)) is not None else NodeUsage(n) for n in nodes
    ]
