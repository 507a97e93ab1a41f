"""What the subtler mutants put in a safeguard's place (:mod:`flows.simulate.mutants`): defects that leave most of what can be seen as it was."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from flows.act import repair as repairing
from flows.act.context import Context
from flows.act.heartbeat import Heartbeat
from flows.decide import episodes as episodes_of
from flows.decide import limits, sightings
from flows.decide.checks import operation_orphaned, proxy_stale_registration
from flows.decide.checks.registry import CHECKS
from flows.domain.agent import Observation
from flows.domain.finding import Check, EpisodeChange, Finding, Policy, Transition
from flows.domain.known import Known
from flows.domain.operation import StepState
from flows.domain.snapshot import Snapshot
from flows.errors import AutomationError, Conflict
from flows.settings import Settings
from flows.simulate import fleet
from flows.state import control, database, epochs, journal, operations, rehydrate, repairs
from flows.state import episodes as episodes_table
from flows.state.ids import new_id

#: (object or mapping, name or key, what stands there instead)
Patch = tuple[Any, Any, Any]


async def nothing(*_: object, **__: object) -> None:
    return None


def _with(section: str, **values: float) -> Patch:
    """Settings under which a defect shows within a simulation's hours."""
    honest = fleet.settings

    def settings(changed: Mapping[str, Mapping[str, Any]] | None = None) -> Settings:
        made = honest(changed)
        return made.model_copy(update={section: getattr(made, section).model_copy(update=values)})

    return (fleet, "settings", settings)


# explained


def intent_shared() -> list[Patch]:
    """The first intent of a sweep stands for all that it does."""
    honest, written = repairs.intent, set[int]()

    async def intent(tx: Any, repair: Any, epoch: int, **more: Any) -> str:
        if epoch in written:
            return new_id()
        written.add(epoch)
        return await honest(tx, repair, epoch, **more)

    return [(repairs, "intent", intent)]


def journal_shared() -> list[Patch]:
    """The first line of an operation's journal stands for all its steps."""
    begin_, done_, failed_, upid_ = journal.begin, journal.done, journal.failed, journal.set_upid

    async def begin(tx: Any, operation_id: str, step: Any, direction: Any, attempt: int, deadline_at: int) -> Any:
        rows = await journal.rows(tx, operation_id)
        if not rows or rows[0].step is step:
            return await begin_(tx, operation_id, step, direction, attempt, deadline_at)
        return replace(rows[0], step=step, direction=direction, state=StepState.STARTED, attempt=attempt, upid=None, runs=1)

    def lenient(write: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def written(*args: Any, **more: Any) -> None:
            try:
                await write(*args, **more)
            except Conflict:
                return

        return written

    others: list[Patch] = [(journal, "done", lenient(done_)), (journal, "failed", lenient(failed_)), (journal, "set_upid", lenient(upid_))]
    return [(journal, "begin", begin), *others]


# no_double_effect


def begins_deposed() -> list[Patch]:
    """A sweep does not notice that it was superseded until it has begun a repair."""
    guard, intent = vars(database)["_guard"], vars(repairing)["_intent"]
    beginning: ContextVar[bool] = ContextVar("beginning", default=False)

    async def guarded(tx: Any, epoch: int) -> None:
        if not beginning.get():
            await guard(tx, epoch)

    async def begin(*args: Any) -> Any:
        token = beginning.set(True)
        try:
            return await intent(*args)
        finally:
            beginning.reset(token)

    return [(database, "_guard", guarded), (repairing, "_intent", begin), (epochs, "renew", nothing), _with("timing", sweep_limit_s=600.0)]


# lock_respected


def brakes_planned() -> list[Patch]:
    """Brakes are planned with, and not read again before an act."""

    async def stopped_since(tx: Any, finding: Finding) -> bool:
        return finding.level > await control.repair_level(tx)

    return [(repairing, "_stopped_since", stopped_since)]


def lease_unminded() -> list[Patch]:
    """A run that was told that its lease is another's goes on."""
    honest = Heartbeat.renew

    async def renew(self: Any) -> None:
        with contextlib.suppress(AutomationError):
            await honest(self)
        self._expires = time.monotonic() + self._timing.lease_s

    async def beat(self: Any) -> None:
        while True:
            await asyncio.sleep(self._timing.heartbeat_s)
            await renew(self)

    return [(Heartbeat, "renew", renew), (Heartbeat, "_beat", beat), (Context, "check", nothing)]


def bulk_for_all() -> list[Patch]:
    """A bulk repair leaves nobody out."""

    async def left_alone(tx: Any) -> frozenset[str]:
        return frozenset()

    return [(rehydrate, "left_alone", left_alone)]


# converges


def mended_late() -> list[Patch]:
    """A repair waits until its finding is eight minutes old."""
    honest = limits.select

    def select(eligible: Iterable[Finding], repairs: Any, opened: Mapping[str, int], policy: Policy) -> dict[str, str]:
        verdicts = honest(list(eligible), repairs, opened, policy)
        now = max((*opened.values(), *_NOW), default=0)
        return {key: why or ("later" if now - opened.get(key, now) < 8 * 60_000 else "") for key, why in verdicts.items()}

    return [(limits, "select", select), *_told_now()]


_NOW: list[int] = []


def _told_now() -> list[Patch]:
    """The time of the snapshot that is being decided on."""
    from flows.decide import plan

    honest = plan.find

    def find(snapshot: Snapshot, policy: Policy) -> Any:
        _NOW[:] = [snapshot.now]
        return honest(snapshot, policy)

    return [(plan, "find", find)]


def undo_given_up() -> list[Patch]:
    """An undo that failed once is not tried again."""
    honest = operations.undo_failed

    async def undo_failed(tx: Any, operation_id: str) -> None:
        for _ in range(3):
            await honest(tx, operation_id)

    return [(operations, "undo_failed", undo_failed)]


# alerted


def _of_lasting(change: Callable[[EpisodeChange], EpisodeChange | None]) -> list[Patch]:
    honest = vars(episodes_of)["_lasting"]

    def lasting(*args: Any) -> EpisodeChange | None:
        found = honest(*args)
        return None if found is None else change(found)

    return [(episodes_of, "_lasting", lasting)]


def worse_untold() -> list[Patch]:
    """That a finding grew worse is stored, and nobody is told."""
    return _of_lasting(lambda c: replace(c, announce=False) if c.transition is Transition.CHANGED else c)


def escalation_lost() -> list[Patch]:
    """A finding that automation will not mend is told only if it was so when it was first seen."""
    return _of_lasting(lambda c: replace(c, transition=Transition.CHANGED, announce=False) if c.transition is Transition.ESCALATED else c)


def over_untold() -> list[Patch]:
    """That a finding is over is written down, and nobody is told."""
    honest = vars(episodes_of)["_closed"]
    return [(episodes_of, "_closed", lambda *args, **kwargs: replace(honest(*args, **kwargs), announce=False))]


def never_recalled() -> list[Patch]:
    """Nobody is reminded; a day is half an hour."""
    return [*_of_lasting(lambda c: None if c.transition is Transition.RECALLED else c), _with("policy", recall_s=1800.0)]


def told_again() -> list[Patch]:
    """That people were told is not remembered."""
    return [(episodes_table, "_mark", nothing)]


def silence_untold() -> list[Patch]:
    """A source that stays unknown is no worse than one that was unknown once."""
    spec = CHECKS[Check.SOURCE_UNKNOWN]

    def find(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
        return [replace(finding, severity=1) for finding in spec.find(snapshot, policy)]

    return [(CHECKS, Check.SOURCE_UNKNOWN, replace(spec, find=find))]


# known_only


def silence_is_unready() -> list[Patch]:
    """An agent that gives no answer counts as one that says: not ready."""
    honest = sightings.observation_of

    def observation_of(snapshot: Snapshot, server_id: str) -> Observation | None:
        found, answer = honest(snapshot, server_id), snapshot.agents.get(server_id)
        if found is None or answer is None or isinstance(answer, Known) or found.ready is not None:
            return found
        before = snapshot.fleet.observations.get(server_id)
        return replace(found, ready=False, unready=(before.unready if before else 0) + 1)

    return [(module, "observation_of", observation_of) for module in (sightings, proxy_stale_registration)]


def silence_is_rest() -> list[Patch]:
    """What nobody says to be under way is not under way."""
    task, job = vars(operation_orphaned)["_task"], vars(operation_orphaned)["_job"]

    def of_proxmox(snapshot: Snapshot, policy: Policy, operation: Any, server: Any) -> str:
        return task(snapshot, policy, operation, server) if isinstance(snapshot.proxmox, Known) else ""

    def of_agent(snapshot: Snapshot, operation: Any, server: Any) -> str:
        return job(snapshot, operation, server) if isinstance(snapshot.agents.get(server.id), Known) else ""

    return [(operation_orphaned, "_task", of_proxmox), (operation_orphaned, "_job", of_agent)]


# edge_truth


def unready_forgotten() -> list[Patch]:
    """An agent that gives no answer makes forget that it said: not ready."""
    honest = sightings.observation_of

    def observation_of(snapshot: Snapshot, server_id: str) -> Observation | None:
        found = honest(snapshot, server_id)
        return replace(found, unready=0) if found is not None and found.ready is None else found

    return [(module, "observation_of", observation_of) for module in (sightings, proxy_stale_registration)]
