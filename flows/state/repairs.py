"""Repairs: an intent before every effect, one outcome after it. Called by ``act`` alone; read by deciding, listings and the digest.

An intent counts against its breaker from the moment it is written. Its outcome is written once, never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import and_, bindparam, exists, func, insert, or_, select, update

from flows.domain.finding import OPERATION_ACTIONS, WITHDRAWALS, Action, Check, Outcome, Repair, RepairRow
from flows.domain.lease import Lease
from flows.domain.operation import LIVE_STATES, OperationState
from flows.state import audit, epochs
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.episodes import ACTOR
from flows.state.ids import new_id

#: Outcomes that count as a failed repair.
FAILURES = frozenset({Outcome.FAILED, Outcome.UNVERIFIED})
_R = t.repairs.c
_L, _O = t.leases.c, t.operations.c
_LIVE = sorted(s.value for s in LIVE_STATES)
# Built once: each is executed in every sweep.
_ENDED = (
    select(t.repairs, _O.state.label("ended_as"), _O.error)
    .join(t.operations, _O.id == _R.operation_id)
    .where(_R.outcome.is_(None), _O.state.not_in(_LIVE))
)
_ABANDONED = select(t.repairs).where(
    _R.outcome.is_(None),
    ~exists().where(
        _L.subject == _R.lease_subject,
        _L.token == _R.lease_token,
        _L.holder.is_not(None),
        _L.expires_at > bindparam("at"),
        2 * _L.heartbeat_at - _L.expires_at <= bindparam("at"),  # as Lease.expired: the clock was not set back by more than an expiry
    ),
    ~exists().where(_O.id == _R.operation_id, _O.state.in_(_LIVE)),
    _R.epoch != bindparam("at_work"),
)
# Unsorted: for the order's sake SQLite would look at every repair that there ever was, and not at these alone.
_RECENT = select(t.repairs).where(or_(_R.intent_at > bindparam("since"), _R.outcome.is_(None)))

_INTENT = insert(t.repairs).values(episode_id=select(t.episodes.c.id).where(t.episodes.c.open_key == bindparam("of")).scalar_subquery())
_OUTCOME = update(t.repairs).where(_R.id == bindparam("of"), _R.outcome.is_(None))
_WHOSE = select(_R.action, _R.subject, _R.server_id, _R.operation_id).where(_R.id == bindparam("of"))


async def intent(
    tx: Tx,
    repair: Repair,
    epoch: int,
    *,
    repair_id: str | None = None,
    lease: Lease | None = None,
    operation_id: str | None = None,
    counted: bool | None = None,
) -> str:
    """Writes that a repair is about to begin, and its audit line. Returns the repair's id: ``repair_id``, for who must know the row again
    when the answer to the commit is lost, else a new one. Raises Conflict where that id has a row.

    ``counted`` None: by the action. Withdrawals and repairs of operations never count against a breaker.
    """
    finding = repair.finding
    repair_id = repair_id or new_id()
    if counted is None:
        counted = repair.action not in WITHDRAWALS and repair.action not in OPERATION_ACTIONS
    await tx.execute(
        _INTENT,
        {
            "of": finding.key,
            "id": repair_id,
            "check": finding.check.value,
            "action": repair.action.value,
            "subject": finding.subject,
            "server_id": finding.server_id,
            "host": finding.host,
            "level": finding.level,
            "counted": counted,
            "epoch": epoch,
            "lease_subject": None if lease is None else lease.subject,
            "lease_token": None if lease is None else lease.token,
            "operation_id": operation_id,
            "intent_at": tx.now,
            "detail": "",
        },
    )
    await audit.append(
        tx,
        ACTOR,
        f"repair.{repair.action.value}",
        finding.subject,
        server_id=finding.server_id,
        operation_id=operation_id,
        detail={"repair": repair_id, "summary": finding.summary, "level": finding.level, "epoch": epoch},
    )
    return repair_id


async def outcome(tx: Tx, repair_id: str, result: Outcome, detail: str = "") -> bool:
    """Writes how it ended, with its audit line. False: it has an outcome already, which stays as it is."""
    done = await tx.execute(_OUTCOME, {"of": repair_id, "outcome": result.value, "outcome_at": tx.now, "detail": detail})
    if done.rowcount != 1:
        return False
    row = (await tx.execute(_WHOSE, {"of": repair_id})).one()
    await audit.append(
        tx,
        ACTOR,
        f"repair.{result.value}",
        row.subject,
        server_id=row.server_id,
        operation_id=row.operation_id,
        detail={"repair": repair_id, "action": row.action, "detail": detail[:1_000]},
    )
    return True


async def opens_breaker(tx: Tx, repair_id: str, attempts: int, window_ms: int) -> bool:
    """Whether this failed repair is the one that opens its subject's breaker: the ``attempts``-th failed one within the window.
    Call it right after :func:`outcome`: True once per opening, so that its alert is raised once."""
    this = (await tx.execute(select(t.repairs).where(_R.id == repair_id))).one_or_none()
    if this is None or not this.counted or this.outcome not in {o.value for o in FAILURES}:
        return False
    same = _R.server_id == this.server_id if this.server_id is not None else and_(_R.subject == this.subject, _R.server_id.is_(None))
    query = select(_R.outcome).where(same, _R.counted.is_(True), _R.intent_at > tx.now - window_ms)
    outcomes = (await tx.execute(query)).scalars().all()
    return sum(found in {o.value for o in FAILURES} for found in outcomes) == attempts


async def settle(tx: Tx) -> list[tuple[RepairRow, Outcome]]:
    """Writes the outcome of every repair that became an operation which has ended since. What proves it is the operation's own last step.
    Returns what was settled."""
    settled = []
    for row in (await tx.execute(_ENDED)).all():
        result = Outcome.REPAIRED if row.ended_as == OperationState.SUCCEEDED.value else Outcome.FAILED
        why = (row.error or {}).get("why") or (row.error or {}).get("what", "")
        detail = "" if result is Outcome.REPAIRED else f"its operation {row.ended_as}" + (f": {why}" if why else "")
        if await outcome(tx, row.id, result, detail[:1000]):
            settled.append((replace(to_repair(row), outcome=result, outcome_at=tx.now, detail=detail[:1000]), result))
    return settled


async def close_abandoned(tx: Tx) -> list[RepairRow]:
    """Closes as ``unverified`` every intent whose actor is gone: its lease has expired or passed on, its operation, if any, has ended,
    and its sweep is not the one that holds the epoch. They count. Returns what was closed."""
    held = await epochs.current(tx)
    at_work = None if held is None or held[1] is None or held[2] < tx.now else held[0]
    # No epoch is -1: with nobody at work, every sweep's intents may be closed.
    rows = [to_repair(row) for row in await tx.execute(_ABANDONED, {"at": tx.now, "at_work": -1 if at_work is None else at_work})]
    for row in rows:
        await outcome(tx, row.id, Outcome.UNVERIFIED, "nobody could tell how it ended: its actor died, or its effect might still have arrived")
    return rows


async def recent(tx: Tx, since: int) -> list[RepairRow]:
    """Those begun after ``since`` (ms), and all that have no outcome yet; oldest first."""
    found = [to_repair(row) for row in await tx.execute(_RECENT, {"since": since})]
    return sorted(found, key=lambda row: (row.intent_at, row.id))


async def unfinished(tx: Tx) -> list[RepairRow]:
    """Intents without an outcome, oldest first."""
    return [to_repair(row) for row in await tx.execute(select(t.repairs).where(_R.outcome.is_(None)).order_by(_R.intent_at, _R.id))]


async def get(tx: Tx, repair_id: str) -> RepairRow | None:
    row = (await tx.execute(select(t.repairs).where(_R.id == repair_id))).one_or_none()
    return None if row is None else to_repair(row)


async def last(tx: Tx, server_id: str, action: Action) -> RepairRow | None:
    """The newest of its kind for a server."""
    query = select(t.repairs).where(_R.server_id == server_id, _R.action == action.value).order_by(_R.intent_at.desc(), _R.id.desc()).limit(1)
    row = (await tx.execute(query)).one_or_none()
    return None if row is None else to_repair(row)


async def list_(
    tx: Tx, *, server_id: str | None = None, outcome: Outcome | None = None, since: int | None = None, limit: int | None = None
) -> list[RepairRow]:
    """Newest first; ``since`` in ms, by intent."""
    query = select(t.repairs).order_by(_R.intent_at.desc(), _R.id.desc())
    if server_id is not None:
        query = query.where(_R.server_id == server_id)
    if outcome is not None:
        query = query.where(_R.outcome == outcome.value)
    if since is not None:
        query = query.where(_R.intent_at >= since)
    if limit is not None:
        query = query.limit(limit)
    return [to_repair(row) for row in await tx.execute(query)]


async def counts(tx: Tx, since: int) -> dict[str, int]:
    """How many repairs begun since (ms) ended how; ``unfinished`` for those that have not."""
    rows: Sequence[Any] = (await tx.execute(select(_R.outcome, func.count()).where(_R.intent_at >= since).group_by(_R.outcome))).all()
    return {row[0] or "unfinished": int(row[1]) for row in rows}


def to_repair(row: Any) -> RepairRow:
    """A row of the table as the domain knows it."""
    return RepairRow(
        id=row.id,
        check=Check(row.check),
        action=Action(row.action),
        subject=row.subject,
        server_id=row.server_id,
        host=row.host,
        level=row.level,
        counted=row.counted,
        intent_at=row.intent_at,
        outcome=None if row.outcome is None else Outcome(row.outcome),
        outcome_at=row.outcome_at,
        episode_id=row.episode_id,
        operation_id=row.operation_id,
        detail=row.detail,
    )
