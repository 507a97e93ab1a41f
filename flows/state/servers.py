"""Servers: the rows that everything else is about. Called by the front door, the steps of an operation and the command line.

A state changes by one guarded statement; a move that the table in ``domain/server.py`` does not know is refused and audited.
``live_name`` carries the uniqueness of names: a deleted or failed server releases it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, select, update

from flows.domain.server import SERVER_TRANSITIONS, ContainerType, Desired, Edge, Runtime, Server, ServerState
from flows.errors import Conflict, NotFound
from flows.state import audit
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.unique import insert_unique

#: States that count against quota and capacity: everything but deleted and cleanly failed.
COUNTED = tuple(s.value for s in ServerState if s not in (ServerState.DELETED, ServerState.FAILED))
_NAMELESS = (ServerState.DELETED, ServerState.FAILED)
_PLAIN = (
    "id", "customer_id", "name", "flavor", "version", "memory_mb", "cores", "disk_gb", "node", "storage", "bridge", "template_vmid",
    "vmid", "address", "desired_by", "token_version", "created_at", "activated_at", "code_server", "backup_policy", "game_port",
)  # fmt: skip


_KNOWN = select(t.servers).order_by(t.servers.c.id).where(t.servers.c.state != ServerState.DELETED.value)
_BY_ID = select(t.servers).where(t.servers.c.id == bindparam("of"))


@dataclass(frozen=True, slots=True)
class Usage:
    """What a customer's counted servers take of the plan."""

    servers: int
    memory_mb: int
    disk_gb: int


def to_server(row: Any) -> Server:
    """A row of the table as the domain knows it."""
    return Server(
        ctype=ContainerType(row.ctype),
        state=ServerState(row.state),
        desired=Desired(row.desired),
        edge=Edge(row.edge),
        runtimes=tuple(Runtime(r["name"], r["version"]) for r in row.runtimes),
        **{c: getattr(row, c) for c in _PLAIN},
    )


#: By id: the row as it was read last, and what was made of it. A sweep reads every server twice, and hardly any has changed.
_BEFORE: dict[str, tuple[tuple[Any, ...], Server]] = {}
#: Rows that are kept, more than any fleet has: those of servers that are no more go with all the others.
_KEPT = 20_000


def as_before(row: Any) -> Server:
    """:func:`to_server` of a whole row of the table, made anew only if the row has changed."""
    values = tuple(row)
    before = _BEFORE.get(row.id)
    if before is not None and before[0] == values:
        return before[1]
    server = to_server(row)
    if before is None and len(_BEFORE) >= _KEPT:
        _BEFORE.clear()
    _BEFORE[server.id] = (values, server)
    return server


async def create(tx: Tx, server: Server) -> Server:
    """Inserts it as it is. Raises Conflict (``name_taken``)."""
    row = {c: getattr(server, c) for c in _PLAIN} | {
        "live_name": None if server.state in _NAMELESS else server.name,
        "ctype": server.ctype.value,
        "state": server.state.value,
        "desired": server.desired.value,
        "edge": server.edge.value,
        "runtimes": [{"name": r.name, "version": r.version} for r in server.runtimes],
        "deleted_at": None,
    }
    if not await insert_unique(tx, t.servers, row):
        raise _name_taken(server.name)
    return server


async def get(tx: Tx, server_id: str) -> Server | None:
    """Whatever its state, deleted ones too."""
    row = (await tx.execute(_BY_ID, {"of": server_id})).one_or_none()
    return None if row is None else to_server(row)


async def by_name(tx: Tx, name: str) -> Server | None:
    """The live server of that name: neither deleted nor failed."""
    row = (await tx.execute(select(t.servers).where(t.servers.c.live_name == name))).one_or_none()
    return None if row is None else to_server(row)


async def list_(
    tx: Tx,
    *,
    customer_id: str | None = None,
    state: ServerState | Sequence[ServerState] | None = None,
    host: str | None = None,
    limit: int | None = None,
    after: str | None = None,
) -> list[Server]:
    """In the order of their creation (ids sort so). Without ``state``: all but the deleted. ``after`` is the last id of the page before."""
    s = t.servers.c
    query = _KNOWN
    if state is not None:
        states = [x.value for x in ([state] if isinstance(state, ServerState) else state)]
        query = select(t.servers).order_by(s.id).where(s.state.in_(states))
    if customer_id is not None:
        query = query.where(s.customer_id == customer_id)
    if host is not None:
        query = query.where(s.node == host)
    if after is not None:
        query = query.where(s.id > after)
    if limit is not None:
        query = query.limit(limit)
    return [as_before(r) for r in await tx.execute(query)]


async def usage(tx: Tx, customer_id: str) -> Usage:
    """What counts against the customer's quota, in one statement. Hold the customer's row (``customers.get(lock=True)``) meanwhile."""
    s = t.servers.c
    row = (
        await tx.execute(
            select(func.count().label("servers"), func.coalesce(func.sum(s.memory_mb), 0), func.coalesce(func.sum(s.disk_gb), 0)).where(
                s.customer_id == customer_id, s.state.in_(COUNTED)
            )
        )
    ).one()
    return Usage(int(row[0]), int(row[1]), int(row[2]))


async def set_state(tx: Tx, server_id: str, to: ServerState, actor: str) -> None:
    """Moves it, and audits the move. Raises NotFound, Conflict (``illegal_transition``, audited; ``name_taken`` when a failed
    server would come back to a name that somebody else has now)."""
    s = t.servers.c
    before = [state.value for state, following in SERVER_TRANSITIONS.items() if to in following]
    values: dict[str, Any] = {"state": to.value}
    if to in _NAMELESS:
        values["live_name"] = None
    if to is ServerState.DELETED:
        values["deleted_at"] = tx.now
    if to is ServerState.ACTIVE:
        values["activated_at"] = func.coalesce(s.activated_at, tx.now)
    if to is ServerState.CREATING:  # from failed: the name must still be free
        values["live_name"] = s.name
        holder = (await tx.execute(select(s.id).where(s.live_name == select(s.name).where(s.id == server_id).scalar_subquery()))).scalar_one_or_none()
        if holder not in (None, server_id):
            raise _name_taken(server_id)
    done = await tx.execute(update(t.servers).where(s.id == server_id, s.state.in_(before)).values(values))
    if done.rowcount == 1:
        await audit.append(tx, actor, "server.state", f"server:{server_id}", server_id=server_id, detail={"to": to.value})
        return
    server = await _existing(tx, server_id)
    detail = {"from": server.state.value, "to": to.value}
    tx.always.append(lambda after: audit.append(after, actor, "server.state.refused", f"server:{server_id}", server_id=server_id, detail=detail))
    raise Conflict(f"server {server.name}", why=f"cannot go from {server.state} to {to}", kind="illegal_transition", facts=detail)


async def mark_deleted(tx: Tx, server_id: str, actor: str) -> None:
    """``deleted``, the name is free. Errors as :func:`set_state`."""
    await set_state(tx, server_id, ServerState.DELETED, actor)


async def mark_failed(tx: Tx, server_id: str, actor: str) -> None:
    """``failed``, cleanly: nothing of it is left, it counts no longer, and the name is free."""
    await set_state(tx, server_id, ServerState.FAILED, actor)


async def set_desired(tx: Tx, server_id: str, desired: Desired, by: str) -> bool:
    """What its owner or operator wants. False: it was so already. Raises NotFound. A change is audited."""
    s = t.servers.c
    done = await tx.execute(update(t.servers).where(s.id == server_id, s.desired != desired.value).values(desired=desired.value, desired_by=by[:64]))
    if done.rowcount == 1:
        await audit.append(tx, by, "server.desired", f"server:{server_id}", server_id=server_id, detail={"to": desired.value})
        return True
    await _existing(tx, server_id)
    return False


async def set_edge(tx: Tx, server_id: str, edge: Edge) -> None:
    """Opens or withdraws it for players. Raises NotFound."""
    await _set(tx, server_id, edge=edge.value)


async def set_vmid(tx: Tx, server_id: str, vmid: int) -> None:
    """After the first one was burnt. Raises NotFound."""
    await _set(tx, server_id, vmid=vmid)


async def raise_token_version(tx: Tx, server_id: str, seen: int) -> int:
    """The agent's next token. Raises Conflict (``changed``) if somebody else raised it since ``seen``."""
    s = t.servers.c
    done = await tx.execute(update(t.servers).where(s.id == server_id, s.token_version == seen).values(token_version=seen + 1))
    if done.rowcount != 1:
        raise Conflict(f"agent token of server {server_id}", why=f"version {seen} is not the present one", kind="changed")
    return seen + 1


async def _set(tx: Tx, server_id: str, **values: Any) -> None:
    done = await tx.execute(update(t.servers).where(t.servers.c.id == server_id).values(**values))
    if done.rowcount != 1:
        raise NotFound(f"server {server_id}")


async def _existing(tx: Tx, server_id: str) -> Server:
    server = await get(tx, server_id)
    if server is None:
        raise NotFound(f"server {server_id}")
    return server


def _name_taken(name: str) -> Conflict:
    return Conflict(f"server name {name!r}", why="a live server has it", kind="name_taken", facts={"name": name})
