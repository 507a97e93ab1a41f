"""The database's answer to the sweep: one frozen Fleet from a handful of set queries, however many servers there are."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select, union_all

from flows.domain.operation import AttemptState, Queue, StepRow
from flows.domain.server import BillingState, ServerState
from flows.domain.snapshot import Fleet, QueueFact
from flows.state import backups, brakes, control, episodes, journal, leases, observations, operations, repairs, reviews, servers, sources
from flows.state import tables as t
from flows.state.database import Tx

HOUR_MS = 3_600_000
#: States of an attempt that no run has claimed.
WAITING = (AttemptState.UNCLAIMED.value, AttemptState.SUBMITTING.value, AttemptState.SUBMITTED.value)


async def load(tx: Tx, *, repairs_ms: int = HOUR_MS) -> Fleet:
    """Everything that deciding wants to know of the database, at ``tx.now``. Call it in one transaction, so that it is one moment.

    ``repairs_ms``: how far back finished repairs are shown; unfinished ones always are.
    """
    s, o = t.servers.c, t.operations.c
    known = [servers.to_server(row) for row in await tx.execute(select(t.servers).where(s.state != ServerState.DELETED.value))]
    billing = await tx.execute(select(t.customers.c.id, t.customers.c.billing))
    live = [operations.to_operation(row) for row in await tx.execute(select(t.operations).where(o.state.in_(operations.LIVE)))]
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
    j, o = t.journal.c, t.operations.c
    query = select(t.journal).join(t.operations, o.id == j.operation_id).where(o.state.in_(operations.LIVE)).order_by(j.started_at)
    found: dict[str, list[StepRow]] = {}
    for row in await tx.execute(query):
        found.setdefault(row.operation_id, []).append(journal.to_step(row))
    return {operation_id: tuple(rows) for operation_id, rows in found.items()}


async def queues(tx: Tx, names: Sequence[Queue] = (Queue.PROVISIONING, Queue.OPERATIONS, Queue.REPAIRS)) -> tuple[QueueFact, ...]:
    """Per queue: orders that no run has claimed, when the one that waits longest last made progress, and when an order of the queue last
    moved. An order that merely waits has not moved, however many of its attempts were lost meanwhile."""
    o = t.operations.c
    waiting = (
        select(o.queue, func.count(), func.min(o.progress_at)).where(o.state.in_(operations.LIVE), o.attempt_state.in_(WAITING)).group_by(o.queue)
    )
    depth = {row[0]: (int(row[1]), row[2]) for row in await tx.execute(waiting)}
    # One look at the end of an index per queue, not over every operation there ever was.
    latest = [
        select(o.queue, o.progress_at)
        .where(o.queue == name.value, o.started_at.is_not(None))
        .order_by(o.progress_at.desc())
        .limit(1)
        .subquery()
        .select()
        for name in names
    ]
    moved = {row[0]: row[1] for row in await tx.execute(union_all(*latest))}
    return tuple(QueueFact(name.value, *depth.get(name.value, (0, None)), moved.get(name.value)) for name in names)
