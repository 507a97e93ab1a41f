"""The database's rows as they lie there, for ``zlh validate database``: set queries alone, however many servers there are, in one transaction.

Nothing is made an enum here: a value that no enum knows is what this looks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, Table, and_, func, or_, select

from flows.domain.lease import LeaseKind
from flows.domain.operation import AttemptState, Direction, OperationKind, OperationState, Queue, StepName, StepState
from flows.domain.records import LeaseRecord, OddValue, OperationRecord, Orphan, Overdue, Records, Reservation, ServerRecord
from flows.domain.server import BillingState, ContainerType, Desired, Edge, ServerState
from flows.state import operations, outbox
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.vmids import Reservation as Held

#: How many keys of one problem are named.
NAMED = 5
HOUR_MS = 3_600_000
_S, _O = t.servers.c, t.operations.c

#: What each column of a state may hold.
_ENUMS: tuple[tuple[Table, str, Iterable[str]], ...] = (
    (t.servers, "state", ServerState),
    (t.servers, "desired", Desired),
    (t.servers, "edge", Edge),
    (t.servers, "ctype", ContainerType),
    (t.customers, "billing", BillingState),
    (t.operations, "state", OperationState),
    (t.operations, "kind", OperationKind),
    (t.operations, "queue", Queue),
    (t.operations, "attempt_state", AttemptState),
    (t.operations, "step", StepName),
    (t.attempts, "state", AttemptState),
    (t.journal, "step", StepName),
    (t.journal, "direction", Direction),
    (t.journal, "state", StepState),
    (t.leases, "kind", LeaseKind),
    (t.vmids, "state", Held),
    (t.addresses, "state", Held),
    (t.outbox, "state", (outbox.WAITING, outbox.SENT, outbox.FOLDED, outbox.DEAD)),
    (t.tokens, "role", ("customer", "admin")),
)

#: References that the schema does not enforce, beside those that it does: a dump restored without its checks violates either.
_REFERENCES: tuple[tuple[Table, str, Table, str], ...] = (
    (t.operations, "live_server", t.servers, "id"),
    (t.operations, "customer_id", t.customers, "id"),
    (t.vmids, "server_id", t.servers, "id"),
    (t.addresses, "server_id", t.servers, "id"),
    (t.leases, "operation_id", t.operations, "id"),
    (t.observations, "server_id", t.servers, "id"),
    (t.episodes, "server_id", t.servers, "id"),
    (t.repairs, "server_id", t.servers, "id"),
    (t.repairs, "operation_id", t.operations, "id"),
    (t.reviews, "server_id", t.servers, "id"),
)


async def load(tx: Tx, *, give_up_ms: int, stuck_ms: int) -> Records:
    """Everything that the rules want to know, at ``tx.now``. ``give_up_ms``: how long an alert may wait; ``stuck_ms``: how long an intent."""
    return Records(
        now=tx.now,
        servers=tuple(_server(row) for row in await tx.execute(_servers(tx.now))),
        operations=tuple(_operation(row) for row in await tx.execute(_operations())),
        leases=tuple(_lease(row) for row in await tx.execute(_leases())),
        vmids={int(r.thing): r for r in await _reservations(tx, t.vmids, "vmid")},
        addresses={r.thing: r for r in await _reservations(tx, t.addresses, "address")},
        overdue=tuple(await _overdue(tx, give_up_ms, stuck_ms)),
        orphans=tuple([o for reference in references() if (o := await _orphan(tx, *reference)) is not None]),
        odd=tuple([odd for column in _ENUMS for odd in await _odd(tx, *column)]),
    )


def references() -> Iterator[tuple[Table, str, Table, str]]:
    """``(table, column, referred table, referred column)``: the schema's own, and the others."""
    for table in t.metadata.sorted_tables:
        for key in sorted(table.foreign_keys, key=lambda k: k.parent.name):
            yield table, key.parent.name, key.column.table, key.column.name
    yield from _REFERENCES


def _servers(now: int) -> Any:
    alive = or_(_S.state != ServerState.DELETED.value, _S.live_name.is_not(None), _S.deleted_at >= now - HOUR_MS)
    columns = "id name live_name ctype node vmid address state created_at activated_at deleted_at".split()
    return select(*(t.servers.c[name] for name in columns)).where(alive).order_by(_S.id)


def _server(row: Any) -> ServerRecord:
    return ServerRecord(**row._mapping)


def _operations() -> Any:
    columns = "id server_id live_server kind state attempt attempt_state created_at progress_at deadline_at finished_at".split()
    return (
        select(*(t.operations.c[name] for name in columns), _S.state.label("server_state"))
        .join(t.servers, _S.id == _O.server_id, isouter=True)
        .where(or_(_O.state.in_(operations.LIVE), _O.live_server.is_not(None)))
        .order_by(_O.id)
    )


def _operation(row: Any) -> OperationRecord:
    return OperationRecord(**row._mapping)


def _leases() -> Any:
    row = t.leases.c
    return (
        select(row.subject, row.kind, row.holder, row.operation_id, row.expires_at, _S.state.label("server_state"), _O.state.label("operation_state"))
        .join(t.servers, _S.id == row.subject, isouter=True)
        .join(t.operations, _O.id == row.operation_id, isouter=True)
        .where(or_(row.holder.is_not(None), row.kind.is_not(None), row.operation_id.is_not(None)))
        .order_by(row.subject)
    )


def _lease(row: Any) -> LeaseRecord:
    return LeaseRecord(**row._mapping)


async def _reservations(tx: Tx, table: Table, key: str) -> list[Reservation]:
    row = table.c
    query = (
        select(row[key].label("thing"), row.state, row.server_id, row.since, row.until, _S.state.label("server_state"))
        .join(t.servers, _S.id == row.server_id, isouter=True)
        .order_by(row[key])
    )
    return [Reservation(str(r.thing), r.state, r.server_id, r.since, r.until, r.server_state) for r in await tx.execute(query)]


async def _overdue(tx: Tx, give_up_ms: int, stuck_ms: int) -> list[Overdue]:
    o, r = t.outbox.c, t.repairs.c
    # A whole day of retries, and the dispatcher's own time to say that it gave up.
    waiting = select(o.id, o.kind, o.created_at).where(o.state == outbox.WAITING, o.created_at < tx.now - give_up_ms - stuck_ms)
    found = [Overdue("outbox", row.id, f"{row.kind} still waits to be delivered", row.created_at) for row in await tx.execute(waiting)]
    open_ = select(r.id, r.action, r.subject, r.intent_at).where(r.outcome.is_(None), r.operation_id.is_(None), r.intent_at < tx.now - stuck_ms)
    found += [Overdue("repairs", row.id, f"{row.action} of {row.subject} has no outcome", row.intent_at) for row in await tx.execute(open_)]
    return found


async def _orphan(tx: Tx, table: Table, column: str, referred: Table, key: str) -> Orphan | None:
    other = referred.alias("referred")
    missing = and_(table.c[column].is_not(None), other.c[key].is_(None))
    joined = table.join(other, other.c[key] == table.c[column], isouter=True)
    count = int((await tx.execute(select(func.count()).select_from(joined).where(missing))).scalar_one())
    if not count:
        return None
    return Orphan(table.name, column, referred.name, count, await _keys(tx, table, select(*table.primary_key).select_from(joined).where(missing)))


async def _odd(tx: Tx, table: Table, column: str, known: Iterable[str]) -> list[OddValue]:
    where: Column[Any] = table.c[column]
    odd = and_(where.is_not(None), where.not_in([str(value) for value in known]))
    counted = await tx.execute(select(where, func.count()).where(odd).group_by(where).order_by(where))
    return [
        OddValue(table.name, column, str(value), int(count), await _keys(tx, table, select(*table.primary_key).where(where == value)))
        for value, count in counted.all()
    ]


async def _keys(tx: Tx, table: Table, query: Any) -> tuple[str, ...]:
    rows = await tx.execute(query.order_by(*table.primary_key).limit(NAMED))
    return tuple("/".join(str(part) for part in row) for row in rows)


def enums() -> Mapping[str, type[StrEnum] | Iterable[str]]:
    """Which column is compared with what; for a test that none was forgotten."""
    return {f"{table.name}.{column}": known for table, column, known in _ENUMS}
