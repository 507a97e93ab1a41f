"""One sweep: take the epoch, observe, decide, act, record. The flow ``reconcile`` calls it every minute.

The epoch row is the authority for who sweeps; the gate (Redis), when configured, only stands in front of it. Whoever does not get the
epoch ends as ``superseded``; whoever cannot renew it stops before its next act.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from flows.act import repair as repairing
from flows.act.deps import Deps
from flows.act.policy import policy_of
from flows.decide import announce
from flows.decide import plan as deciding
from flows.decide.sightings import observations as next_observations
from flows.decide.sightings import sightings as next_sightings
from flows.decide.sightings import sources as next_sources
from flows.domain.event import Event, EventKind
from flows.domain.finding import BrakeRow, BrakeScope, Outcome, Plan
from flows.domain.ports import Gate
from flows.domain.snapshot import Snapshot
from flows.errors import AutomationError, Fenced, Temporary
from flows.observe.gather import Readers, gather
from flows.settings import TimingSettings
from flows.state import brakes, episodes, epochs, observations, outbox, repairs, reviews, sources, sweeps
from flows.state.database import Tx

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """``outcome``: clean, findings, paused, superseded or failed."""

    outcome: str
    epoch: int = 0
    plan: Plan | None = None
    outcomes: Sequence[tuple[str, str]] = field(default_factory=tuple)
    seconds: float = 0.0
    reason: str = ""


def too_late(age_s: float, timing: TimingSettings) -> bool:
    """Whether a tick that was due so many seconds ago is another's by now: a schedule that was behind gives all that it missed at once."""
    return age_s > max(2 * timing.sweep_s, timing.late_s)


async def sweep(deps: Deps, gate: Gate, say: Callable[[str], None] | None = None) -> SweepResult:
    """One sweep from epoch to epoch. Raises Unreachable where the database does not answer."""
    say = say or log.info
    began = time.monotonic()
    timing = deps.settings.timing
    entered = await gate.enter(deps.holder, timing.epoch_s)
    if entered is False:
        return SweepResult("superseded", reason="another controller holds the gate")
    try:
        epoch = await epochs.begin(deps.database, deps.holder, int(timing.epoch_s * 1000))
        if epoch is None:
            return SweepResult("superseded", reason="another controller holds the epoch")
        try:
            async with asyncio.timeout(timing.sweep_limit_s), _Renewal(deps, epoch):
                return await _Sweep(deps, epoch, began, say).run()
        except Fenced as error:
            say(f"superseded in the middle: {error}")
            return SweepResult("superseded", epoch, reason=str(error), seconds=time.monotonic() - began)
        except TimeoutError:
            return await _out_of_time(deps, epoch, began)
        finally:
            with contextlib.suppress(AutomationError):
                await epochs.end(deps.database, epoch, deps.holder)
    finally:
        await gate.leave(deps.holder)


async def _out_of_time(deps: Deps, epoch: int, began: float) -> SweepResult:
    """Over its limit: failed, unless a newer sweep has begun meanwhile (this one stood still, say), which has said all there is to say."""
    try:
        await _finish(deps, epoch, "failed", {"reason": f"over its limit of {deps.settings.timing.sweep_limit_s:g} s"})
    except Fenced as error:
        return SweepResult("superseded", epoch, reason=str(error), seconds=time.monotonic() - began)
    return SweepResult("failed", epoch, reason="over its time limit", seconds=time.monotonic() - began)


class _Renewal:
    """Renews the epoch beside the sweep; cancels it with Fenced when somebody newer holds it or it cannot be renewed in time."""

    def __init__(self, deps: Deps, epoch: int) -> None:
        self._deps, self._epoch = deps, epoch
        self._error: Fenced | None = None

    async def _renew(self, body: asyncio.Task[object]) -> None:
        timing = self._deps.settings.timing
        expires = time.monotonic() + timing.epoch_s
        while True:
            await asyncio.sleep(timing.epoch_renew_s)
            sent = time.monotonic()
            try:
                await epochs.renew(self._deps.database, self._epoch, self._deps.holder, int(timing.epoch_s * 1000))
                expires = sent + timing.epoch_s
            except Fenced as error:
                self._error = error
            except Temporary as error:
                if time.monotonic() > expires - 2 * timing.epoch_renew_s:
                    self._error = Fenced("sweep", why=f"the epoch could not be renewed: {error}")
            if self._error is not None:
                body.cancel()
                return

    async def __aenter__(self) -> None:
        body = asyncio.current_task()
        assert body is not None
        self._body = body
        self._task = asyncio.create_task(self._renew(body))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._error is not None:
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                self._body.uncancel()
            raise self._error


class _Sweep:
    """The body under a held epoch."""

    def __init__(self, deps: Deps, epoch: int, began: float, say: Callable[[str], None]) -> None:
        self.deps, self.epoch, self.began, self.say = deps, epoch, began, say

    async def run(self) -> SweepResult:
        deps = self.deps
        async with deps.database.write(epoch=self.epoch) as tx:
            await sweeps.start(tx, self.epoch, deps.holder)
            for row, outcome in await repairs.settle(tx):
                await repairing.announce_late(deps, tx, row, outcome, row.detail)
            for row in await repairs.close_abandoned(tx):
                await repairing.announce_late(deps, tx, row, Outcome.UNVERIFIED, "nobody could tell how it ended")
            await self._brakes(tx)
        snapshot = await observe(deps, self.epoch)
        plan = deciding.decide(snapshot, policy_of(deps.settings))
        for line in announce.lines(plan):
            self.say(line)
        await self._record(snapshot, plan)
        outcomes = await self._act(plan)
        seconds = time.monotonic() - self.began
        paused = any(brake.scope is BrakeScope.ALL for brake in snapshot.fleet.brakes)
        result = "paused" if paused else "findings" if plan.findings else "clean"
        await _finish(
            deps,
            self.epoch,
            result,
            {"findings": len(plan.findings), "repairs": [list(o) for o in outcomes], "skipped": dict(plan.skipped), "seconds": round(seconds, 3)},
        )
        return SweepResult(result, self.epoch, plan, tuple(outcomes), seconds)

    async def _brakes(self, tx: Tx) -> None:
        """Pauses that ran out are lifted and said to be over; those that last are recalled daily."""
        for brake in await brakes.expire(tx):
            await self._tell(tx, EventKind.AUTOMATION_RESUMED, f"over/{brake.id}", f"pause of {brake.target or 'everything'} is over", brake)
        for brake in await brakes.recall(tx, policy_of(self.deps.settings).recall_ms):
            await self._tell(tx, EventKind.AUTOMATION_PAUSED, f"{brake.id}/{tx.now}", f"still paused: {brake.target or 'everything'}", brake)

    async def _tell(self, tx: Tx, kind: EventKind, key: str, what: str, brake: BrakeRow) -> None:
        event = Event(kind, key=f"{kind}/{key}", what=what, where=brake.scope, done=f"{brake.reason} (by {brake.actor})", command="zlh status")
        await outbox.put(tx, event, self.deps.route(event, tx.now))

    async def _record(self, snapshot: Snapshot, plan: Plan) -> None:
        """What was seen, and the episodes' transitions with their alerts, in one transaction before any act."""
        policy = policy_of(self.deps.settings)
        async with self.deps.database.write(epoch=self.epoch) as tx:
            await observations.upsert(tx, next_observations(snapshot))
            await sources.upsert(tx, next_sources(snapshot), next_sightings(snapshot, policy))
            await reviews.withdraw(tx, plan.withdrawn)
            await reviews.request(tx, plan.asked)
            await episodes.apply(tx, plan.changes, seen={finding.key for finding in plan.findings})
            for event in announce.events(plan, snapshot.now):
                await outbox.put(tx, event, self.deps.route(event, tx.now))

    async def _act(self, plan: Plan) -> list[tuple[str, str]]:
        """Repairs one after another, in the plan's order. None begins without room before the sweep's limit."""
        outcomes: list[tuple[str, str]] = []
        limit = self.deps.settings.timing.sweep_limit_s
        for order in plan.repairs:
            await self.deps.boundary(f"act:{order.action}")
            left = limit - (time.monotonic() - self.began)
            outcome: Outcome | None = await repairing.carry_out(self.deps, order, self.epoch, left)
            outcomes.append((order.finding.key, outcome.value if outcome else "not begun"))
            self.say(f"{order.action} of {order.finding.subject}: {outcome.value if outcome else 'not begun'}")
        return outcomes


async def observe(deps: Deps, epoch: int = 0) -> Snapshot:
    """One fresh look, for the sweep, for ``zlh explain`` and for a dry run."""
    readers = Readers(deps.database, deps.proxmox, deps.agents, deps.proxy, deps.dns, deps.engine)
    window = max(3_600_000, policy_of(deps.settings).breaker_window_ms)
    return await gather(readers, epoch, deps.settings.timing.observe_s, repairs_ms=window)


async def _finish(deps: Deps, epoch: int, outcome: str, summary: dict[str, object]) -> None:
    async with deps.database.write(epoch=epoch) as tx:
        await sweeps.finish(tx, epoch, outcome, summary)
