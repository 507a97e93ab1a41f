"""One row per sweep: when it began, when and how it ended. Written by ``reconcile``; read by the watchdog and ``zlh status``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from flows.state import tables as t
from flows.state.database import Tx


class SweepOutcome(StrEnum):
    CLEAN = "clean"
    FINDINGS = "findings"
    PAUSED = "paused"
    FAILED = "failed"
    SUPERSEDED = "superseded"


#: Outcomes that prove a living controller. A paused sweep looked; a failed or superseded one did not finish its work.
FINISHED = frozenset({SweepOutcome.CLEAN, SweepOutcome.FINDINGS, SweepOutcome.PAUSED})


@dataclass(frozen=True, slots=True)
class Sweep:
    epoch: int
    holder: str
    started_at: int
    finished_at: int | None = None
    outcome: SweepOutcome | None = None
    summary: Mapping[str, object] = field(default_factory=dict)


_START = insert(t.sweeps)
#: The other parameters are the columns that it sets.
_FINISH = update(t.sweeps).where(t.sweeps.c.epoch == bindparam("mine"), t.sweeps.c.finished_at.is_(None))


async def start(tx: Tx, epoch: int, holder: str) -> None:
    await tx.execute(_START, {"epoch": epoch, "holder": holder, "started_at": tx.now, "summary": {}})


async def finish(tx: Tx, epoch: int, outcome: SweepOutcome | str, summary: Mapping[str, object] | None = None) -> bool:
    """Writes the end of a sweep once; False if it has one already. ``outcome`` is a :class:`SweepOutcome` or its value."""
    done = await tx.execute(_FINISH, {"mine": epoch, "finished_at": tx.now, "outcome": SweepOutcome(outcome).value, "summary": dict(summary or {})})
    return bool(done.rowcount == 1)


async def last(tx: Tx) -> Sweep | None:
    """The newest sweep, whatever became of it."""
    return _sweep((await tx.execute(select(t.sweeps).order_by(t.sweeps.c.epoch.desc()).limit(1))).one_or_none())


async def last_finished(tx: Tx) -> Sweep | None:
    """The newest sweep that did its work (see :data:`FINISHED`). Newest by epoch, which no clock can turn back."""
    query = select(t.sweeps).where(t.sweeps.c.outcome.in_([o.value for o in FINISHED])).order_by(t.sweeps.c.epoch.desc()).limit(1)
    return _sweep((await tx.execute(query)).one_or_none())


async def list_(tx: Tx, *, limit: int = 20) -> list[Sweep]:
    """Newest first."""
    rows = (await tx.execute(select(t.sweeps).order_by(t.sweeps.c.epoch.desc()).limit(limit))).all()
    return [sweep for row in rows if (sweep := _sweep(row)) is not None]


async def prune(tx: Tx, before: int) -> int:
    """Removes sweeps that began before a time (ms); a sweep a minute is half a million rows a year."""
    done = await tx.execute(delete(t.sweeps).where(t.sweeps.c.started_at < before))
    return int(done.rowcount)


def _sweep(row: Any) -> Sweep | None:
    if row is None:
        return None
    outcome = None if row.outcome is None else SweepOutcome(row.outcome)
    return Sweep(row.epoch, row.holder, row.started_at, row.finished_at, outcome, row.summary)
