"""The database's answer to the sweep: one frozen Fleet from a handful of set queries, however many servers there are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import CompoundSelect, func, select, union_all

from flows.domain.operation import AttemptState, Queue, StepRow
from flows.domain.server import BillingState, ServerState
from flows.domain.snapshot import Fleet, QueueFact
from flows.state import backups, brakes, control, episodes, journal, leases, observations, operations, repairs, reviews, servers, sources
from flows.state import tables as t
from flows.state.database import Tx

HOUR_MS = 3_600_000
#: States of an attempt that no run has claimed.
WAITING = (AttemptState.UNCLAIMED.value, AttemptState.SUBMITTING.value, AttemptState.SUBMITTED.value)


_O, _J = t.operations.c, t.journal.c
# Built once: what SQLAlchemy makes of a statement costs several times what SQLite does with it.
_SERVERS = select(t.servers).where(t.servers.c.state != ServerState.DELETED.value)
_BILLING = select(t.customers.c.id, t.customers.c.billing)
_LIVE = select(t.operations).where(_O.state.in_(operations.LIVE))
_STEPS = select(t.journal).join(t.operations, _O.id == _J.operation_id).where(_O.state.in_(operations.LIVE)).order_by(_J.started_at)
_WAITING = (
    select(_O.queue, func.count(), func.min(_O.progress_at)).where(_O.state.in_(operations.LIVE), _O.attempt_state.in_(WAITING)).group_by(_O.queue)
)


async def load(tx: Tx, *, repairs_ms: int = HOUR_MS) -> Fleet:
    """Everything that deciding wants to know of the database, at ``tx.now``. Call it in one transaction, so that it is one moment.

    ``repairs_ms``: how far back finished repairs are shown; unfinished ones always are.
    """
    known = [servers.as_before(row) for row in await tx.execute(_SERVERS)]
    billing = await tx.execute(_BILLING)
    live = [operations.to_operation(row) for row in await tx.execute(_LIVE)]
    facts, sightings = await sources.all_(tx)
    return Fleet(
        servers={server.id: server for server in known},
        billing={row.id: BillingState(row.billing) for row in billing},
        operations={operation.id: operation for operation in live},
        steps=await _steps(tx) if live else {},
        leases={lease.subject: lease for lease in await leases.list_(tx)},
        brakes=await brakes.active(tx),
        episodes=await episodes.open_(tx),
        repairs=tuple(await repairs.recent(tx, tx.now - repairs_ms)),
        observations=await observations.all_(tx),
        backups=await backups.latest_verified(tx),
        sources=facts,
        queues=await queues(tx),
        sightings=sightings,
        max_level=await control.repair_level(tx),
        reviews=await reviews.recent(tx),
    )


async def _steps(tx: Tx) -> dict[str, tuple[StepRow, ...]]:
    """The journals of live operations, in the order in which their steps began."""
    found: dict[str, list[StepRow]] = {}
    for row in await tx.execute(_STEPS):
        found.setdefault(row.operation_id, []).append(journal.to_step(row))
    return {operation_id: tuple(rows) for operation_id, rows in found.items()}


async def queues(tx: Tx, names: Sequence[Queue] = (Queue.PROVISIONING, Queue.OPERATIONS, Queue.REPAIRS)) -> tuple[QueueFact, ...]:
    """Per queue: orders that no run has claimed, when the one that waits longest last made progress, and when an order of the queue last
    moved. An order that merely waits has not moved, however many of its attempts were lost meanwhile."""
    depth = {row[0]: (int(row[1]), row[2]) for row in await tx.execute(_WAITING)}
    moved = {row[0]: row[1] for row in await tx.execute(_latest(tuple(names)))}
    return tuple(QueueFact(name.value, *depth.get(name.value, (0, None)), moved.get(name.value)) for name in names)


@cache
def _latest(names: tuple[Queue, ...]) -> CompoundSelect[Any]:
    """One look at the end of an index per queue, not over every operation there ever was."""
    return union_all(
        *(
            select(_O.queue, _O.progress_at)
            .where(_O.queue == name.value, _O.started_at.is_not(None))
            .order_by(_O.progress_at.desc())
            .limit(1)
            .subquery()
            .select()
            for name in names
        )
    )
