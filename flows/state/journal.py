"""The journal of steps: written before and after each effect. Called by the executor, read by the sweep and by people.

One row per step and direction. A step that is done never begins again; one that was interrupted keeps the id of its Proxmox task, so
that its resumption first waits for what it left behind. Each line counts as progress of its operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, select, update

from flows.domain.operation import Direction, StepName, StepRow, StepState
from flows.errors import Conflict, Fenced
from flows.state import operations
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.unique import insert_unique

_J = t.journal.c
_KEY = (_J.operation_id == bindparam("of"), _J.step == bindparam("at"), _J.direction == bindparam("way"))
# Built once: each step of an operation executes them all.
_AGAIN = update(t.journal).where(*_KEY, _J.state != StepState.DONE.value, _J.attempt <= bindparam("mine")).values(runs=_J.runs + 1)
_STARTED = update(t.journal).where(*_KEY, _J.state == StepState.STARTED.value)
_ROW = select(t.journal).where(*_KEY)
_ROWS = select(t.journal).where(_J.operation_id == bindparam("of")).order_by(_J.started_at, _J.step, _J.direction)


async def begin(tx: Tx, operation_id: str, step: StepName, direction: Direction, attempt: int, deadline_at: int) -> StepRow:
    """``started`` by this attempt, once more if it was before (``runs`` + 1). Raises Conflict (``step_done``) for a step already done,
    Fenced if a newer attempt began it."""
    changed = {"state": StepState.STARTED.value, "attempt": attempt, "started_at": tx.now, "deadline_at": deadline_at, "finished_at": None}
    done = await tx.execute(_AGAIN, _key(operation_id, step, direction) | {"mine": attempt} | changed)
    if done.rowcount != 1:
        key = {"operation_id": operation_id, "step": step.value, "direction": direction.value}
        if not await insert_unique(tx, t.journal, key | changed | {"runs": 1, "upid": None, "detail": {}}):
            row = await _row(tx, operation_id, step, direction)
            if row is not None and row.state is not StepState.DONE:
                raise Fenced(_name(operation_id, step, direction), why=f"attempt {row.attempt} began it, this is attempt {attempt}")
            raise Conflict(_name(operation_id, step, direction), why="it is done, or its operation is unknown", kind="step_done")
    await operations.progressed(tx, operation_id)
    row = await _row(tx, operation_id, step, direction)
    assert row is not None  # written above
    return row


async def done(tx: Tx, operation_id: str, step: StepName, direction: Direction, detail: Mapping[str, object] | None = None) -> None:
    """The effect is proven. ``detail`` replaces what an earlier failure left. Raises Conflict (``step_not_begun``) unless it is started."""
    await _finish(tx, operation_id, step, direction, StepState.DONE, detail)


async def failed(tx: Tx, operation_id: str, step: StepName, direction: Direction, detail: Mapping[str, object] | None = None) -> None:
    """It ended without its effect; it may begin again. Raises Conflict (``step_not_begun``) unless it is started."""
    await _finish(tx, operation_id, step, direction, StepState.FAILED, detail)


async def set_upid(tx: Tx, operation_id: str, step: StepName, direction: Direction, upid: str) -> None:
    """The Proxmox task that carries the step, stored before it is waited on. Raises Conflict (``step_not_begun``) unless it is started."""
    await _change(tx, operation_id, step, direction, upid=upid)


async def rows(tx: Tx, operation_id: str) -> tuple[StepRow, ...]:
    """In the order in which they (last) began."""
    return tuple(to_step(r) for r in await tx.execute(_ROWS, {"of": operation_id}))


def to_step(row: Any) -> StepRow:
    """A row of the table as the domain knows it."""
    return StepRow(
        operation_id=row.operation_id,
        step=StepName(row.step),
        direction=Direction(row.direction),
        state=StepState(row.state),
        attempt=row.attempt,
        started_at=row.started_at,
        deadline_at=row.deadline_at,
        finished_at=row.finished_at,
        upid=row.upid,
        runs=row.runs,
        detail=row.detail,
    )


async def _finish(tx: Tx, operation_id: str, step: StepName, direction: Direction, to: StepState, detail: Mapping[str, object] | None) -> None:
    await _change(tx, operation_id, step, direction, state=to.value, finished_at=tx.now, detail=dict(detail or {}))


async def _change(tx: Tx, operation_id: str, step: StepName, direction: Direction, **values: Any) -> None:
    result = await tx.execute(_STARTED, _key(operation_id, step, direction) | values)
    if result.rowcount != 1:
        raise Conflict(_name(operation_id, step, direction), why="it is not under way", kind="step_not_begun")
    await operations.progressed(tx, operation_id)


async def _row(tx: Tx, operation_id: str, step: StepName, direction: Direction) -> StepRow | None:
    row = (await tx.execute(_ROW, _key(operation_id, step, direction))).one_or_none()
    return None if row is None else to_step(row)


def _key(operation_id: str, step: StepName, direction: Direction) -> dict[str, Any]:
    return {"of": operation_id, "at": step.value, "way": direction.value}


def _name(operation_id: str, step: StepName, direction: Direction) -> str:
    return f"step {step.value} ({direction.value}) of operation {operation_id}"
