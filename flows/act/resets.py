"""Throwing execution state away: what Redis holds, and Prefect's database. Ours alone is the truth; both are made anew from it.

Called by ``zlh redis reset``, ``zlh engine reset`` and the flow ``post-migration``. Promises: nothing is thrown away under a live lease unless
forced; whatever is killed in between may be run again; what the old runs still hold in their hands ends before any effect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from flows.act.deps import Deps
from flows.act.sweep import SweepResult, sweep
from flows.decide.episodes import REPAIRING
from flows.domain.finding import Check, EpisodeRow, Reason
from flows.domain.lease import Lease
from flows.domain.ports import Gate
from flows.domain.validation import Part, Problem, Report, Unlooked
from flows.errors import Busy
from flows.state import audit, control, episodes, leases, sweeps
from flows.state.database import Database

#: Seconds between two looks for another controller's sweep.
LOOK_S = 0.5
#: What is mended by the operation's own means: submitted, attempted or undone again.
_OF_OPERATIONS = frozenset({Check.OPERATION_UNSUBMITTED, Check.OPERATION_ORPHANED, Check.STUCK_PROVISIONING, Check.CLEANUP_REQUIRED})


class Keys(Protocol):
    """The Redis server."""

    async def forget(self) -> int: ...
    async def flush(self) -> int: ...


async def refuse_live(database: Database, what: str) -> None:
    """Raises Busy naming who is at work."""
    async with database.read() as tx:
        held = [lease for lease in await leases.list_(tx) if not lease.expired(tx.now)]
    if held:
        raise Busy(what, why=f"{len(held)} leases are live: {_named(held)}", remedy="wait until they are over: zlh leases; or add --force")


def _named(held: list[Lease]) -> str:
    return ", ".join(f"{lease.kind} of {lease.subject} ({lease.holder})" for lease in held[:3]) + (", …" if len(held) > 3 else "")


async def reset_redis(database: Database, keys: Keys, actor: str, *, everything: bool, force: bool) -> int:
    """Removes our keys, or empties the whole server; returns how many keys there were. Audited before: the effect is not taken back."""
    if not force:
        await refuse_live(database, "redis reset")
    async with database.write() as tx:
        await audit.append(tx, actor, "redis.reset", "redis", detail={"all": everything, "force": force})
    return await (keys.flush() if everything else keys.forget())


async def reset_engine(database: Database, renew: Callable[[], Awaitable[None]], actor: str, *, force: bool) -> int:
    """Raises the generation, then has the engine's database made anew (``renew``). In this order: from the first line on, no old run gets
    an attempt, a heartbeat or a submission. Returns the generation."""
    if not force:
        await refuse_live(database, "engine reset")
    async with database.write() as tx:
        raised = await control.raise_generation(tx, actor)
        await audit.append(tx, actor, "engine.reset", "engine", detail={"generation": raised, "force": force})
    await renew()
    return raised


async def prove_sweep(deps: Deps, gate: Gate, say: Callable[[str], None], *, gated: bool) -> Report:
    """One sweep from here, or where another controller sweeps just now that one: it must find nothing that was not known before, but for
    what it mends itself. ``gated``: Redis is configured, and must have let the sweep in."""
    patience_s = deps.settings.watchdog.intervals * deps.settings.timing.sweep_s
    async with deps.database.read() as tx:
        before, began = set(await episodes.open_(tx)), tx.now
    watched = _Watched(gate)
    result = await sweep(deps, watched, say)
    if result.outcome == "superseded":
        others = await _others(deps.database, began, patience_s)
        if others is None:
            why = f"another controller sweeps, and none of its sweeps ended in {patience_s:g} s"
            return Report(unlooked=(Unlooked(Part.RESET, "whether the next sweep is clean", why, "zlh status; then zlh reconcile"),))
        result = others
    unlooked: list[Unlooked] = []
    if gated and watched.entered is None:
        unlooked.append(Unlooked(Part.RESET, "whether Redis lets a sweep in", "it gave no answer", "check ZLH_REDIS__URL; zlh doctor"))
    async with deps.database.read() as tx:
        now = await episodes.open_(tx)
    opened = [(key, row) for key, row in sorted(now.items()) if key not in before and not _mended(row)]
    problems = [
        Problem(Part.RESET, "sweep_not_clean", (f"episodes:{row.id}",), row.summary or key, row.remedy or "zlh findings")
        for key, row in opened
        if row.check is not Check.SOURCE_UNKNOWN
    ]
    unlooked += [Unlooked(Part.RESET, row.subject, row.summary, row.remedy) for _, row in opened if row.check is Check.SOURCE_UNKNOWN]
    if result.outcome == "failed":
        problems.append(
            Problem(Part.RESET, "sweep_failed", (f"sweeps:{result.epoch}",), f"the sweep failed: {result.reason}", "zlh status; zlh doctor")
        )
    return Report(tuple(problems), tuple(unlooked), (f"sweep {result.epoch}: {result.outcome}",))


def _mended(row: EpisodeRow) -> bool:
    """By this very sweep, or as one of many orders by a next: each lost its run in the engine, and a sweep submits few of them again."""
    return row.reason == REPAIRING or (row.reason == Reason.RATE_LIMITED and row.check in _OF_OPERATIONS)


async def _others(database: Database, began: int, patience_s: float) -> SweepResult | None:
    """The end of a sweep that began after ``began`` (ms): one that was under way had looked before."""
    end = time.monotonic() + patience_s
    while True:
        async with database.read() as tx:
            last = await sweeps.last(tx)
        if last is not None and last.finished_at is not None and last.started_at >= began and last.outcome is not None:
            return SweepResult(last.outcome.value, last.epoch, reason=str(last.summary.get("reason", "")))
        if time.monotonic() >= end:
            return None
        await asyncio.sleep(LOOK_S)


class _Watched:
    """The gate, and whether it let the sweep in."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.entered: bool | None = None

    async def enter(self, holder: str, ttl_s: float) -> bool | None:
        self.entered = await self._gate.enter(holder, ttl_s)
        return self.entered

    async def renew(self, holder: str, ttl_s: float) -> bool | None:
        return await self._gate.renew(holder, ttl_s)

    async def leave(self, holder: str) -> None:
        await self._gate.leave(holder)
