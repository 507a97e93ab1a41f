"""Attempts: which try of an operation is to be submitted, is with the engine, is owned by a run, or is over.

Called by the submitter (a task of ``zlh-dispatch``), by runs, and by the sweep. ``attempts`` holds every try; ``operations`` repeats the
newest one's number and state. Rows are locked in one order everywhere: lease, attempt, operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, case, func, or_, select, tuple_, update

from flows.domain.lease import Lease, LeaseKind
from flows.domain.operation import (
    DEPLOYMENT_OF,
    FORWARD_ONLY,
    LIVE_STATES,
    AttemptState,
    Operation,
    OperationKind,
    OperationState,
    Queue,
    engine_key,
)
from flows.errors import Busy, Conflict, Fenced, NotFound
from flows.state import control, leases, operations
from flows.state import tables as t
from flows.state.database import Tx

_S = AttemptState
#: States from which a run may still claim.
_CLAIMABLE = (_S.UNCLAIMED.value, _S.SUBMITTING.value, _S.SUBMITTED.value)


@dataclass(frozen=True, slots=True)
class Submission:
    """What the engine needs to be asked for."""

    operation_id: str
    attempt: int
    kind: OperationKind
    queue: Queue

    def asked(self, generation: int) -> tuple[str, str, dict[str, object], str]:
        """Deployment, key, parameters and queue, as :meth:`flows.domain.ports.Engine.submit` takes them: whoever submits an attempt, the
        submitter or the sweep, asks for the same run."""
        parameters: dict[str, object] = {"operation_id": self.operation_id, "attempt": self.attempt, "generation": generation}
        return DEPLOYMENT_OF[self.kind], engine_key(generation, self.operation_id, self.attempt), parameters, self.queue.value


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try, for people. Times in ms."""

    operation_id: str
    attempt: int
    state: AttemptState
    created_at: int
    run_id: str | None = None
    claimed_at: int | None = None
    ended_at: int | None = None
    outcome: str | None = None


async def claim_for_submission(tx: Tx, submitter: str, until: int, limit: int) -> list[Submission]:
    """Up to ``limit`` attempts that nobody has submitted, oldest first; they are the submitter's until ``until`` (ms). One whose submitter
    did not come back in time is claimed again: the engine's idempotency key makes the second submission harmless."""
    o = t.operations.c
    rows = (await tx.execute(_unsubmitted(limit), {"at": tx.now})).all()
    if not rows:
        return []
    keys = [(r.id, r.attempt) for r in rows]
    done = await tx.execute(
        update(t.attempts).where(_among(keys), _waiting(tx.now)).values(state=_S.SUBMITTING.value, submitter=submitter[:64], submit_until=until)
    )
    if done.rowcount != len(rows):  # the rows are locked: only a bug gets here, and then nothing may be submitted
        raise Conflict("submission", why="attempts changed under their lock")
    ids = [r.id for r in rows]
    await tx.execute(update(t.operations).where(o.id.in_(ids), o.attempt_state == _S.UNCLAIMED.value).values(attempt_state=_S.SUBMITTING.value))
    return [Submission(r.id, r.attempt, OperationKind(r.kind), Queue(r.queue)) for r in rows]


def _waiting(now: Any) -> ColumnElement[bool]:
    a = t.attempts.c
    return or_(a.state == _S.UNCLAIMED.value, and_(a.state == _S.SUBMITTING.value, a.submit_until <= now))


@cache
def _unsubmitted(limit: int) -> Select[Any]:
    """Built once: a submitter looks every second."""
    o, a = t.operations.c, t.attempts.c
    return (
        select(o.id, o.attempt, o.kind, o.queue)
        .join(t.attempts, and_(a.operation_id == o.id, a.attempt == o.attempt))
        .where(o.attempt_state.in_([_S.UNCLAIMED.value, _S.SUBMITTING.value]), o.live_server.is_not(None), _waiting(bindparam("at")))
        .order_by(o.attempt_at, o.id)
        .limit(limit)
        .with_for_update(of=t.attempts, skip_locked=True)
    )


async def take_over(tx: Tx, operation_id: str, attempt: int, submitter: str, until: int) -> Submission:
    """This one attempt, from whichever submitter has it, until ``until`` (ms): for the sweep, which found that the engine has no run of it.
    Raises Fenced once a run claimed it, it is over, or a newer one exists."""
    operation = _claimable(await operations.get(tx, operation_id), operation_id, attempt)
    if not await _move(tx, operation_id, attempt, _S.SUBMITTING, _CLAIMABLE, submitter=submitter[:64], submit_until=until):
        raise Fenced(f"attempt {attempt} of operation {operation_id}", why="a run claimed it, or it is over")
    await _mirror(tx, operation_id, attempt, _S.SUBMITTING, (_S.UNCLAIMED, _S.SUBMITTED))
    return Submission(operation_id, attempt, operation.kind, operation.queue)


async def submitted(tx: Tx, operation_id: str, attempt: int, run_id: str) -> None:
    """The engine has it. A run that was faster than this note keeps its claim; the engine's id is noted either way."""
    a = t.attempts.c
    moved = case((a.state.in_([_S.UNCLAIMED.value, _S.SUBMITTING.value]), _S.SUBMITTED.value), else_=a.state)
    await tx.execute(update(t.attempts).where(a.operation_id == operation_id, a.attempt == attempt).values(run_id=run_id[:64], state=moved))
    await _mirror(tx, operation_id, attempt, _S.SUBMITTED, (_S.UNCLAIMED, _S.SUBMITTING))


async def unsubmit(tx: Tx, operation_id: str, attempt: int) -> None:
    """Back to the submitters: the engine refused it, gave no answer, or never saw it. Raises Fenced once a run claimed it, or it is over."""
    if not await _move(tx, operation_id, attempt, _S.UNCLAIMED, _CLAIMABLE, submitter=None, submit_until=None):
        raise Fenced(f"attempt {attempt} of operation {operation_id}", why="a run claimed it, or it is over")
    await _mirror(tx, operation_id, attempt, _S.UNCLAIMED, (_S.SUBMITTING, _S.SUBMITTED))


async def claim_run(tx: Tx, operation_id: str, attempt: int, generation: int, holder: str, ttl_ms: int) -> tuple[Operation, Lease]:
    """A run's first act: exactly this attempt and the server's lease, or neither.

    Raises Fenced (the run ends): another generation, attempt not the newest, claimed or over, operation ended. Raises Busy while
    somebody else holds the server's lease (the run may wait); then nothing is claimed.
    """
    present = await control.generation(tx, lock=True)
    if generation != present:
        raise Fenced(f"run of operation {operation_id}", why=f"generation {generation} was superseded by {present}")
    operation = _claimable(await operations.get(tx, operation_id), operation_id, attempt)
    try:
        lease = await leases.take(tx, operation.server_id, LeaseKind.OPERATION, holder, ttl_ms, operation_id=operation_id)
    except Busy:
        _claimable(await operations.get(tx, operation_id), operation_id, attempt)  # a twin of this run may have been faster: then Fenced
        raise
    o = t.operations.c
    if not await _move(tx, operation_id, attempt, _S.CLAIMED, _CLAIMABLE, claimed_at=tx.now):
        raise Fenced(f"attempt {attempt} of operation {operation_id}", why="another run claimed it, or it is over")
    queued = o.state == OperationState.QUEUED.value
    # In this order: MariaDB would read the new state in an assignment that follows.
    done = await tx.execute(
        update(t.operations)
        .where(o.id == operation_id, o.attempt == attempt, o.live_server.is_not(None))
        .ordered_values(
            (o.state, case((queued, OperationState.RUNNING.value), else_=o.state)),
            (o.attempt_state, _S.CLAIMED.value),
            (o.attempt_at, tx.now),
            (o.claimed, o.claimed + 1),
            (o.started_at, func.coalesce(o.started_at, tx.now)),
            (o.progress_at, tx.now),
        )
    )
    claimed = await operations.get(tx, operation_id)
    if done.rowcount != 1 or claimed is None:
        raise Fenced(f"attempt {attempt} of operation {operation_id}", why="a newer attempt exists, or the operation has ended")
    return claimed, lease


async def next_attempt(tx: Tx, operation_id: str) -> int:
    """Writes attempt n+1, unclaimed, and ends attempt n if nobody did; the phase stays, and so does the last
    progress: a new try is none. Raises NotFound, Conflict once the operation
    has ended, Fenced if somebody else wrote n+1 in the same moment."""
    operation = await operations.get(tx, operation_id)
    if operation is None:
        raise NotFound(f"operation {operation_id}")
    if operation.state not in LIVE_STATES:
        raise Conflict(f"operation {operation_id}", why=f"it is {operation.state}", kind="operation_ended", facts={"state": operation.state.value})
    following = operation.attempt + 1
    await _move(tx, operation_id, operation.attempt, _S.ENDED, (*_CLAIMABLE, _S.CLAIMED.value), ended_at=tx.now, outcome="superseded")
    o = t.operations.c
    done = await tx.execute(
        update(t.operations)
        .where(o.id == operation_id, o.attempt == operation.attempt, o.live_server.is_not(None))
        .values(attempt=following, attempt_state=_S.UNCLAIMED.value, attempt_at=tx.now)
    )
    if done.rowcount != 1:
        raise Fenced(f"attempt {following} of operation {operation_id}", why="somebody else wrote it, or the operation has ended")
    await operations.add_attempt(tx, operation_id, following)
    return following


async def clean_up_again(tx: Tx, operation: Operation, *, deadline_ms: int, actor: str = "system:executor") -> int:
    """Another try of what waits in ``cleanup_required``: an undo once more, a deletion further on. It is a phase of its own, with claims
    counted anew and ``deadline_ms`` from now: by the old ones it would be given up before a run could take it. Raises as
    :func:`next_attempt`, and Conflict ``illegal_transition``."""
    to = OperationState.RUNNING if operation.kind in FORWARD_ONLY else OperationState.COMPENSATING
    await operations.set_state(tx, operation.id, to, actor=actor, deadline_ms=deadline_ms)
    await operations.new_phase(tx, operation.id)
    return await next_attempt(tx, operation.id)


async def end(tx: Tx, operation_id: str, attempt: int, outcome: str) -> bool:
    """It is over. False: it was already, and its first outcome stays."""
    ended = await _move(tx, operation_id, attempt, _S.ENDED, (*_CLAIMABLE, _S.CLAIMED.value), ended_at=tx.now, outcome=outcome[:32])
    await _mirror(tx, operation_id, attempt, _S.ENDED, (_S.UNCLAIMED, _S.SUBMITTING, _S.SUBMITTED, _S.CLAIMED))
    return ended


async def list_(tx: Tx, operation_id: str) -> list[AttemptRow]:
    """All tries of an operation, in order."""
    a = t.attempts.c
    rows = await tx.execute(select(t.attempts).where(a.operation_id == operation_id).order_by(a.attempt))
    return [AttemptRow(r.operation_id, r.attempt, AttemptState(r.state), r.created_at, r.run_id, r.claimed_at, r.ended_at, r.outcome) for r in rows]


def _claimable(operation: Operation | None, operation_id: str, attempt: int) -> Operation:
    if operation is None:
        raise Fenced(f"operation {operation_id}", why="it has no record")
    if operation.state not in LIVE_STATES:
        raise Fenced(f"operation {operation_id}", why=f"it is {operation.state}")
    if operation.attempt != attempt:
        raise Fenced(f"attempt {attempt} of operation {operation_id}", why=f"attempt {operation.attempt} is the newest")
    if operation.attempt_state.value not in _CLAIMABLE:
        raise Fenced(f"attempt {attempt} of operation {operation_id}", why=f"it is {operation.attempt_state}")
    return operation


def _among(keys: Sequence[tuple[str, int]]) -> ColumnElement[bool]:
    return tuple_(t.attempts.c.operation_id, t.attempts.c.attempt).in_(keys)


async def _move(tx: Tx, operation_id: str, attempt: int, to: AttemptState, before: Sequence[str], **values: object) -> bool:
    a = t.attempts.c
    done = await tx.execute(
        update(t.attempts).where(a.operation_id == operation_id, a.attempt == attempt, a.state.in_(before)).values(state=to.value, **values)
    )
    return bool(done.rowcount == 1)


async def _mirror(tx: Tx, operation_id: str, attempt: int, to: AttemptState, before: Sequence[AttemptState]) -> None:
    """Repeats the newest attempt's state in its operation. ``attempt_at`` stays: how long nobody has claimed the attempt counts from its
    creation, however often its submission is tried."""
    o = t.operations.c
    await tx.execute(
        update(t.operations)
        .where(o.id == operation_id, o.attempt == attempt, o.attempt_state.in_([s.value for s in before]))
        .values(attempt_state=to.value)
    )
