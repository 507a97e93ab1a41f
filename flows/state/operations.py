"""Operations: orders, their state and their place in the work. Called by the front door, the executor and the sweep.

One live operation per server: ``live_server`` is unique while an operation lives. Every change is one guarded statement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, insert, null, select, update

from flows.domain.operation import (
    LIVE_STATES,
    OPERATION_TRANSITIONS,
    AttemptState,
    Operation,
    OperationKind,
    OperationState,
    Queue,
    StepName,
)
from flows.domain.server import ContainerType, Server
from flows.errors import Conflict, NotFound
from flows.state import audit
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import new_id
from flows.state.unique import insert_unique

_O = OperationState
_PLAIN = (
    "id", "server_id", "actor", "attempt", "attempt_at", "claimed", "created_at", "progress_at", "deadline_at", "started_at",
    "finished_at", "step_deadline_at", "error", "params", "cancel_requested", "undo_failures",
)  # fmt: skip
LIVE = tuple(sorted(s.value for s in LIVE_STATES))
_BY_ID = select(t.operations).where(t.operations.c.id == bindparam("of"))
_NEWEST = select(t.operations).order_by(t.operations.c.created_at.desc(), t.operations.c.id.desc())
_PROGRESSED = update(t.operations).where(t.operations.c.id == bindparam("of"))
_LIVES = _PROGRESSED.where(t.operations.c.live_server.is_not(None))


@dataclass(frozen=True, slots=True)
class Nonce:
    """What makes a repeated creation recognisable: the caller's nonce, and a hash of the whole body."""

    nonce: str
    body_hash: str


def to_operation(row: Any) -> Operation:
    """A row of the table as the domain knows it."""
    return Operation(
        kind=OperationKind(row.kind),
        state=OperationState(row.state),
        queue=Queue(row.queue),
        attempt_state=AttemptState(row.attempt_state),
        step=None if row.step is None else StepName(row.step),
        **{c: getattr(row, c) for c in _PLAIN},
    )


async def get(tx: Tx, operation_id: str) -> Operation | None:
    row = (await tx.execute(_BY_ID, {"of": operation_id})).one_or_none()
    return None if row is None else to_operation(row)


async def live_of(tx: Tx, server_id: str) -> Operation | None:
    """The operation that holds the server, if one does."""
    row = (await tx.execute(select(t.operations).where(t.operations.c.live_server == server_id))).one_or_none()
    return None if row is None else to_operation(row)


async def by_nonce(tx: Tx, customer_id: str, ctype: ContainerType, nonce: str) -> tuple[Operation, str] | None:
    """The creation that this customer once ordered with the nonce, and the hash of the body it was ordered with."""
    o = t.operations.c
    row = (await tx.execute(select(t.operations).where(o.customer_id == customer_id, o.ctype == ctype.value, o.nonce == nonce))).one_or_none()
    return None if row is None else (to_operation(row), row.body_hash)


async def list_(
    tx: Tx,
    *,
    state: OperationState | Sequence[OperationState] | None = None,
    server_id: str | None = None,
    customer_id: str | None = None,
    since: int | None = None,
    limit: int | None = None,
    live: bool = False,
) -> list[Operation]:
    """Newest first; ``since`` in ms, by creation. ``live``: only those that still hold their server."""
    o = t.operations.c
    query = _NEWEST if state is None else _newest((state,) if isinstance(state, OperationState) else tuple(state))
    if server_id is not None:
        query = query.where(o.server_id == server_id)
    if customer_id is not None:
        query = query.where(o.customer_id == customer_id)
    if live:
        query = query.where(o.live_server.is_not(None))
    if since is not None:
        query = query.where(o.created_at >= since)
    if limit is not None:
        query = query.limit(limit)
    return [to_operation(r) for r in await tx.execute(query)]


@cache
def _newest(states: tuple[OperationState, ...]) -> Select[Any]:
    """Built once: every sweep asks so for the live ones."""
    return _NEWEST.where(t.operations.c.state.in_([state.value for state in states]))


async def create(
    tx: Tx,
    *,
    server: Server,
    kind: OperationKind,
    queue: Queue,
    actor: str,
    params: Mapping[str, object],
    deadline_ms: int,
    nonce: Nonce | None = None,
    operation_id: str | None = None,
) -> Operation:
    """``queued``, with its first attempt unclaimed; ``deadline_ms`` from now. Two statements.

    Raises Conflict ``operation_live`` (``facts``: the live one's id, kind and state) or ``nonce_used``.
    """
    operation = Operation(
        id=operation_id or new_id(),
        server_id=server.id,
        kind=kind,
        state=_O.QUEUED,
        queue=queue,
        actor=actor[:64],
        attempt=1,
        attempt_state=AttemptState.UNCLAIMED,
        attempt_at=tx.now,
        claimed=0,
        created_at=tx.now,
        progress_at=tx.now,
        deadline_at=tx.now + deadline_ms,
        params=dict(params),
    )
    row = {c: getattr(operation, c) for c in _PLAIN} | {
        "live_server": server.id,
        "customer_id": server.customer_id,
        "kind": kind.value,
        "state": operation.state.value,
        "queue": queue.value,
        "attempt_state": operation.attempt_state.value,
        "step": None,
        "ctype": server.ctype.value if nonce is not None else None,
        "nonce": None if nonce is None else nonce.nonce,
        "body_hash": None if nonce is None else nonce.body_hash,
    }
    if not await insert_unique(tx, t.operations, row):
        raise await _collision(tx, server, nonce)
    await add_attempt(tx, operation.id, 1)
    return operation


async def add_attempt(tx: Tx, operation_id: str, attempt: int) -> None:
    """The row of an attempt that waits for a submitter. For this module and :mod:`flows.state.attempts`."""
    row = {"operation_id": operation_id, "attempt": attempt, "state": AttemptState.UNCLAIMED.value, "created_at": tx.now}
    await tx.execute(insert(t.attempts), row)


async def set_state(
    tx: Tx,
    operation_id: str,
    to: OperationState,
    *,
    error: Mapping[str, str] | None = None,
    actor: str = "system:executor",
    deadline_ms: int | None = None,
) -> None:
    """Moves it; ``error`` (what, why, remedy) is kept when given. Counts as progress.

    A terminal state releases the server and sets ``finished_at``. ``failed`` → ``queued`` takes the server again and forgets how it went; give it a
    new ``deadline_ms``. ``compensating`` begins a phase (see :func:`new_phase`); a failed undo is counted by :func:`undo_failed`.
    Raises NotFound, Conflict (``illegal_transition``, audited in the name of ``actor``; ``operation_live``).
    """
    o = t.operations.c
    before = [state.value for state, following in OPERATION_TRANSITIONS.items() if to in following]
    values: dict[str, Any] = {"state": to.value, "progress_at": tx.now}
    if error is not None:
        values["error"] = dict(error)
    if deadline_ms is not None:
        values["deadline_at"] = tx.now + deadline_ms
    if to not in LIVE_STATES:
        values |= {"live_server": None, "finished_at": tx.now, "step_deadline_at": None}
    elif to is _O.COMPENSATING:
        values["claimed"] = 0
    elif to is _O.QUEUED:
        await _refuse_second(tx, operation_id)
        values |= {"live_server": o.server_id, "finished_at": None, "claimed": 0, "undo_failures": 0, "cancel_requested": False}
        values |= {"started_at": None, "error": null()}  # an order of its own: neither how long it took nor how it failed is the former one's
    done = await tx.execute(update(t.operations).where(o.id == operation_id, o.state.in_(before)).values(values))
    if done.rowcount == 1:
        return
    operation = await _existing(tx, operation_id)
    detail = {"from": operation.state.value, "to": to.value}
    tx.always.append(
        lambda after: audit.append(
            after, actor, "operation.state.refused", f"operation:{operation_id}",
            server_id=operation.server_id, operation_id=operation_id, detail=detail,
        )
    )  # fmt: skip
    raise Conflict(f"operation {operation_id}", why=f"cannot go from {operation.state} to {to}", kind="illegal_transition", facts=detail)


async def set_step(tx: Tx, operation_id: str, step: StepName | None, deadline_at: int | None) -> None:
    """The step under way and its hard deadline (ms). Counts as progress. Raises NotFound, Conflict once the operation has ended."""
    values = {"step": None if step is None else step.value, "step_deadline_at": deadline_at, "progress_at": tx.now}
    done = await tx.execute(_LIVES, {"of": operation_id, **values})
    if done.rowcount != 1:
        raise _ended(await _existing(tx, operation_id))


async def new_phase(tx: Tx, operation_id: str) -> None:
    """Counts claimed attempts anew: the operation now goes another way (back, or once more) and has its tries for that. Raises NotFound."""
    await _update(tx, operation_id, claimed=0)


async def undo_failed(tx: Tx, operation_id: str) -> None:
    """Counts a compensation (or a deletion) that failed. Raises NotFound."""
    await _update(tx, operation_id, undo_failures=t.operations.c.undo_failures + 1)


async def request_cancel(tx: Tx, operation_id: str, actor: str) -> bool:
    """Asks its run to stop at the next boundary. False: it was asked already. Raises NotFound, Conflict once it has ended. Audited."""
    o = t.operations.c
    done = await tx.execute(
        update(t.operations).where(o.id == operation_id, o.live_server.is_not(None), o.cancel_requested.is_(False)).values(cancel_requested=True)
    )
    operation = await _existing(tx, operation_id)
    if done.rowcount == 1:
        subject = f"operation:{operation_id}"
        await audit.append(tx, actor, "operation.cancel", subject, server_id=operation.server_id, operation_id=operation_id)
        return True
    if operation.state not in LIVE_STATES:
        raise _ended(operation)
    return False


async def progressed(tx: Tx, operation_id: str) -> None:
    """Notes that the journal moved. For :mod:`flows.state.journal`."""
    await tx.execute(_PROGRESSED, {"of": operation_id, "progress_at": tx.now})


async def _update(tx: Tx, operation_id: str, **values: Any) -> None:
    done = await tx.execute(update(t.operations).where(t.operations.c.id == operation_id).values(**values))
    if done.rowcount != 1:
        raise NotFound(f"operation {operation_id}")


async def _existing(tx: Tx, operation_id: str) -> Operation:
    operation = await get(tx, operation_id)
    if operation is None:
        raise NotFound(f"operation {operation_id}")
    return operation


async def _collision(tx: Tx, server: Server, nonce: Nonce | None) -> Conflict:
    if nonce is not None:
        known = await by_nonce(tx, server.customer_id, server.ctype, nonce.nonce)
        if known is not None:
            return Conflict("request_nonce", why="was used before", kind="nonce_used", facts={"operation_id": known[0].id})
    live = await live_of(tx, server.id)
    if live is None:
        return Conflict(f"server {server.name}", why="it does not exist, or another operation has just ended", remedy="try again")
    return _live(server.name, live)


async def _refuse_second(tx: Tx, operation_id: str) -> None:
    o = t.operations.c
    server_id = select(o.server_id).where(o.id == operation_id).scalar_subquery()
    row = (await tx.execute(select(t.operations).where(o.live_server == server_id, o.id != operation_id))).one_or_none()
    if row is not None:
        raise _live(row.server_id, to_operation(row))


def _live(server: str, live: Operation) -> Conflict:
    return Conflict(
        f"server {server}",
        why=f"{live.kind} {live.id} is {live.state}",
        remedy=f"wait for it, or: zlh operations cancel {live.id}",
        kind="operation_live",
        facts={"operation_id": live.id, "kind": live.kind.value, "state": live.state.value},
    )


def _ended(operation: Operation) -> Conflict:
    return Conflict(f"operation {operation.id}", why=f"it is {operation.state}", kind="operation_ended", facts={"state": operation.state.value})
