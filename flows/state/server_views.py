"""Servers with all that is known of each: the last observation, the operation and the lease that hold it. One statement, for the front door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Select, Table, select

from flows.domain.agent import Observation
from flows.domain.lease import Lease
from flows.domain.operation import Operation
from flows.domain.server import Server, ServerState
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.leases import to_lease
from flows.state.observations import to_observation
from flows.state.operations import to_operation
from flows.state.servers import to_server

_TABLES = (t.servers, t.observations, t.operations, t.leases)


@dataclass(frozen=True, slots=True)
class KnownServer:
    """``seen`` None: never observed. ``live`` None: no operation holds it. ``lease`` None: it never had one; else as it is, held or not."""

    server: Server
    seen: Observation | None
    live: Operation | None
    lease: Lease | None


async def get(tx: Tx, server_id: str) -> KnownServer | None:
    """Whatever its state, deleted ones too."""
    row = (await tx.execute(_all().where(t.servers.c.id == server_id))).one_or_none()
    return None if row is None else _known(row)


async def list_(tx: Tx, *, customer_id: str | None, state: ServerState | None, limit: int, after: str | None) -> list[KnownServer]:
    """As :func:`flows.state.servers.list_`."""
    s = t.servers.c
    query = _all().order_by(s.id).limit(limit).where(s.state != ServerState.DELETED.value if state is None else s.state == state.value)
    if customer_id is not None:
        query = query.where(s.customer_id == customer_id)
    if after is not None:
        query = query.where(s.id > after)
    return [_known(row) for row in await tx.execute(query)]


def _all() -> Select[Any]:
    # Each column under its table's name: several tables have an id and a state.
    columns = [column.label(f"{table.name}_{column.name}") for table in _TABLES for column in table.columns]
    s = t.servers.c.id
    joined = t.servers.outerjoin(t.observations, t.observations.c.server_id == s)
    joined = joined.outerjoin(t.operations, t.operations.c.live_server == s).outerjoin(t.leases, t.leases.c.subject == s)
    return select(*columns).select_from(joined)


def _known(row: Sequence[Any]) -> KnownServer:
    parts, at = [], 0
    for table in _TABLES:
        parts.append(_part(table, row[at : at + len(table.columns)]))
        at += len(table.columns)
    server, seen, live, lease = parts
    return KnownServer(
        to_server(server),
        None if seen is None else to_observation(seen),
        None if live is None else to_operation(live),
        None if lease is None else to_lease(lease),
    )


def _part(table: Table, values: Sequence[Any]) -> Any:
    """One table's share of a row; None where the join found nothing, by its key."""
    part = SimpleNamespace(**dict(zip(table.columns.keys(), values, strict=True)))
    return None if getattr(part, next(iter(table.primary_key.columns)).name) is None else part
