"""After a migration (M8): database, resets, workers, (a restore by approval), one controlled creation, in this order; the first failure ends it.

Called by the flow ``post-migration`` and by ``zlh validate post-migration --here``. From its first transaction on the front door takes no order
but this run's own, until everything passed: a failure, or a death at any point, leaves intake closed for a person.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import SecretStr

from flows.act import resets, trial
from flows.act.deps import Deps
from flows.domain.ports import Gate
from flows.domain.sources import EngineRun
from flows.domain.validation import Part, Report, Unlooked, merged
from flows.errors import AutomationError, Busy
from flows.observe import validation
from flows.observe.validation import Lookers
from flows.state import audit, control, tokens

ACTOR = "system:post-migration"
#: As :func:`flows.domain.operation.engine_key` makes it.
_ENGINE_KEY = re.compile(r"(\d+):[^:\s]+:\d+")
NOT_YET = Unlooked(
    Part.RESTORE,
    "whether a restore would mend it",
    "flow restore-database (M4) is not available in this version",
    "mend what was found by its command, then run this again; zlh intake open only if you know better",
)


class Running(Protocol):
    """The engine's runs under way."""

    async def active(self) -> Sequence[EngineRun]: ...
    async def give_up(self, run_id: str, reason: str) -> None: ...


@dataclass(frozen=True)
class Parts:
    """``keys`` None: no Redis is configured. ``converge`` deploys by the usual code. ``door`` is the front door in the name of a token."""

    deps: Deps
    look: Lookers
    gate: Gate
    keys: resets.Keys | None
    converge: Callable[[], Awaitable[None]]
    engine: Running
    door: Callable[[SecretStr], trial.FrontDoor]
    wish: trial.Wish
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """``stopped_at`` None: everything passed, and intake is open again."""

    stopped_at: Part | None
    report: Report


async def run(parts: Parts, say: Callable[[str], None]) -> Ending:
    """Raises what the database raises before intake was closed; from then on every failure is part of the ending."""
    token_id, secret = await _close(parts)
    stages: tuple[tuple[Part, Callable[[], Awaitable[Report]]], ...] = (
        (Part.DATABASE, lambda: validation.database(parts.look)),
        (Part.RESET, lambda: _reset(parts, say)),
        (Part.WORKERS, lambda: validation.workers(parts.look)),
        (Part.PROVISIONING, lambda: trial.run(parts.deps, parts.door(secret), parts.wish, say)),
    )
    reports: list[Report] = []
    stopped: Part | None = None
    try:
        for part, stage in stages:
            report = await _stage(part, stage)
            reports.append(report)
            say(f"{part.value}: " + ("passed" if report.clean else "stopped here") + (f" ({'; '.join(report.looked)})" if report.looked else ""))
            if not report.clean:
                stopped = part
                break
    except BaseException:
        stopped = part  # killed or cancelled: the one under way
        raise
    finally:
        await _end(parts, token_id, stopped)
    if stopped is Part.DATABASE and reports[0].problems:
        reports.append(Report(unlooked=(NOT_YET,)))
    return Ending(stopped, merged(reports))


async def _stage(part: Part, stage: Callable[[], Awaitable[Report]]) -> Report:
    try:
        return await stage()
    except AutomationError as error:
        return Report(unlooked=(Unlooked(part, part.value, f"{error.what} · {error.why}", error.remedy),))


async def _close(parts: Parts) -> tuple[str, SecretStr]:
    """Intake closed to everybody but a token of this run's own, which ends by itself should nobody be left to revoke it."""
    timing = parts.deps.settings.timing
    async with parts.deps.database.write() as tx:
        ends = tx.now + int(3 * (timing.operation_s + timing.stuck_s) * 1000)
        token_id, secret = await tokens.create(tx, customer_id=None, role=tokens.Role.ADMIN, label="post-migration", expires_at=ends)
        await control.set_intake_closed(tx, True, ACTOR, but=token_id)
        await audit.append(tx, ACTOR, "post_migration.begin", "control:intake_closed", detail={"run": parts.run_id})
    return token_id, SecretStr(secret)


async def _end(parts: Parts, token_id: str, stopped: Part | None) -> None:
    async with parts.deps.database.write() as tx:
        await tokens.revoke(tx, token_id)
        await control.end_pass(tx, token_id, ACTOR, closed=stopped is not None)
        detail = {"stopped_at": stopped.value} if stopped else {}
        await audit.append(tx, ACTOR, "post_migration.stopped" if stopped else "post_migration.passed", "control:intake_closed", detail=detail)


async def _reset(parts: Parts, say: Callable[[str], None]) -> Report:
    """Redis emptied of ours, the generation raised, deployments converged, runs of older generations given up; and a sweep that proves it.
    Prefect's database stays, since this may be one of its runs: ``zlh engine reset`` makes it anew from outside."""
    deps = parts.deps
    await _quiet(parts)
    if parts.keys is not None:
        removed = await resets.reset_redis(deps.database, parts.keys, ACTOR, everything=False, force=False)
        say(f"removed {removed} keys of Redis")

    async def renew() -> None:
        await parts.converge()
        async with deps.database.read() as tx:
            present = await control.generation(tx)
        for run in await parts.engine.active():
            if older(run.key, present) and run.id != parts.run_id:
                await parts.engine.give_up(run.id, "an older generation's run, after a migration")

    generation = await resets.reset_engine(deps.database, renew, ACTOR, force=False)
    say(f"generation {generation}")
    return await resets.prove_sweep(deps, parts.gate, say, gated=parts.keys is not None)


def older(key: str, generation: int) -> bool:
    """Whether it is the key of an operation's run of a generation before. A sweep's or a digest's run ends by itself, whatever key the engine's
    schedule gave it; and what was ordered since the generation was raised goes on."""
    known = _ENGINE_KEY.fullmatch(key)
    return known is not None and int(known[1]) < generation


async def _quiet(parts: Parts) -> None:
    """Waits for live leases to end; a repair's lasts seconds. Raises Busy naming those that last longer."""
    timing = parts.deps.settings.timing
    end = time.monotonic() + timing.lease_s + parts.deps.settings.watchdog.intervals * timing.sweep_s
    while True:
        try:
            await resets.refuse_live(parts.deps.database, "resets")
            return
        except Busy:
            if time.monotonic() >= end:
                raise
        await asyncio.sleep(timing.ready_poll_s)
