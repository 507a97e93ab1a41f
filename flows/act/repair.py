"""One repair from intent to outcome.

(1) one transaction writes the intent: audit line, attempt, lease, the sweep's epoch checked. (2) The condition is read again at the
source; gone: ``already_healed``. (3) The effect. (4) The condition is read once more, and one transaction writes the outcome.
Nothing acts without an intent; an effect whose outcome could not be established is ``unverified`` and counts. Where it may even still
arrive, nothing is written: intent and lease stay open until the lease has expired, and a later sweep closes them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from flows.act.deps import Deps
from flows.act.heartbeat import Heartbeat
from flows.act.repairs import operations as operation_repairs
from flows.act.repairs import ordering, submission
from flows.act.repairs.base import RepairContext, RepairHandler
from flows.act.repairs.registry import HANDLERS
from flows.decide import breakers
from flows.decide.reviews import hash_of, plan_of
from flows.domain.event import Event, EventKind
from flows.domain.finding import OPERATION_ACTIONS, REVIEWED, Action, BrakeScope, Finding, Outcome, Repair, RepairRow
from flows.domain.lease import Lease, LeaseKind
from flows.domain.operation import engine_key
from flows.errors import AmbiguousEffect, AutomationError, Busy, Conflict, DeadlineExceeded, Fenced, Temporary
from flows.state import brakes, control, epochs, leases, orders, outbox, repairs, reviews, servers
from flows.state.database import Tx
from flows.state.ids import new_id

log = structlog.get_logger(__name__)

#: Repairs after which the attempt's run, if any, is over for good.
_ENDS_RUN = frozenset({Action.REVOKE_AND_RESUBMIT, Action.FAIL_STUCK})
#: Longest time for telling the engine so, seconds.
END_RUN_S = 5.0
#: Longest time that a worker is given before that to end the processes of a run which may still be alive, seconds: measured are under 5.
CANCEL_S = 5.0
_LOOK_S = 0.5


async def carry_out(deps: Deps, repair: Repair, epoch: int, left_s: float) -> Outcome | None:
    """Carries out one repair of a sweep with ``left_s`` seconds to go. None: it did not begin (locked meanwhile, or no time left).
    Raises Fenced when the sweep itself is superseded, and nothing else: a row that cannot be repaired must not keep others from it."""
    repair_id = new_id()
    try:
        if repair.action in submission.ACTIONS:
            return await _submission(deps, repair, repair_id, epoch, left_s)
        if repair.action in OPERATION_ACTIONS:
            return await _operation(deps, repair, repair_id, epoch, left_s)
        if repair.action in ordering.KINDS:
            return await _ordered(deps, repair, repair_id, epoch, left_s)
        return await _leased(deps, repair, repair_id, epoch, left_s)
    except AutomationError as error:
        log.warning("not repaired", finding=repair.finding.key, error=str(error))
        await _superseded(deps, epoch, error)
        return await _failed(deps, repair, repair_id, epoch, error)


async def _leased(deps: Deps, repair: Repair, repair_id: str, epoch: int, left_s: float) -> Outcome | None:
    handler = HANDLERS[repair.action]
    if handler.limit_s > left_s:
        return None
    lease = await _intent(deps, repair, repair_id, epoch)
    if lease is None:
        return None
    await deps.boundary(f"repair:{repair.action}:intent")
    try:
        async with Heartbeat(deps.database, deps.settings.timing, lease.subject, lease.token, deps.abandon) as beat:
            ctx = RepairContext(deps, repair.finding, lease.subject, lease.token, epoch, beat)
            async with asyncio.timeout(handler.limit_s):
                ended = await _healed(handler, ctx)
    except Fenced as error:
        ended = _Ended(Outcome.FENCED, str(error))
    except AutomationError as error:
        ended = _Ended(Outcome.FAILED, str(error))
    except TimeoutError:
        ended = _Ended(Outcome.UNVERIFIED, f"not finished in {handler.limit_s:g} s", may_arrive=True)
    if ended.may_arrive:
        # Its lease keeps others away for as long as the call may still arrive; a later sweep closes intent and lease as unverified.
        log.warning("left open", finding=repair.finding.key, why=ended.detail)
        return Outcome.UNVERIFIED
    return await _outcome(deps, repair, repair_id, lease, epoch, ended.outcome, ended.detail)


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a repair ended, and why. ``may_arrive``: its effect may still be on its way, and nobody could look."""

    outcome: Outcome
    detail: str = ""
    may_arrive: bool = False


async def _healed(handler: RepairHandler, ctx: RepairContext) -> _Ended:
    """Condition, effect, condition. An effect whose answer was lost is looked for before it counts as failed. Raises what the first look
    raises, and what refused the effect."""
    if not await handler.drifted(ctx):
        return _Ended(Outcome.ALREADY_HEALED)
    lost: Temporary | None = None
    done = True
    try:
        done = await handler.heal(ctx)
    except Temporary as error:
        lost = error
    await ctx.deps.boundary(f"repair:{handler.action}:effect")
    try:
        drifted = await handler.drifted(ctx)
    except Fenced:
        raise
    except AutomationError as error:
        may_arrive = isinstance(lost, AmbiguousEffect | DeadlineExceeded)
        return _Ended(Outcome.UNVERIFIED, f"{lost}; {error}" if lost else str(error), may_arrive)
    if drifted:
        return _Ended(Outcome.FAILED, str(lost or ""))
    return _Ended(Outcome.REPAIRED if done else Outcome.ALREADY_HEALED)


async def _superseded(deps: Deps, epoch: int, error: AutomationError) -> None:
    """Raises ``error`` where it means that the sweep is over: a newer one holds the epoch, or nobody can say that none does. Any other
    Fenced concerns one row alone."""
    if not isinstance(error, Fenced):
        return
    try:
        async with deps.database.read() as tx:
            row = await epochs.current(tx)
    except AutomationError:
        raise error from None
    if row is None or row[0] != epoch:
        raise error


async def _failed(deps: Deps, repair: Repair, repair_id: str, epoch: int, error: AutomationError) -> Outcome:
    """What could not even be begun: its transaction left nothing, so intent and outcome are written here. A database that is gone records
    nothing; the next sweep begins anew. Where only the answer to a commit was lost, what it wrote stands and is not written, or counted,
    again: its operation ends it, or a later sweep, once its lease has expired. A commit still under way collides with the same id here."""
    try:
        async with deps.database.write(epoch=epoch) as tx:
            stands = await repairs.get(tx, repair_id)
            if stands is not None:
                return stands.outcome or (Outcome.ORDERED if stands.operation_id is not None else Outcome.UNVERIFIED)
            await repairs.intent(tx, repair, epoch, repair_id=repair_id, counted=breakers.counts(repair.action))
            await repairs.outcome(tx, repair_id, Outcome.FAILED, str(error)[:1000])
            await _announce(deps, tx, _Told.of(repair), repair_id, Outcome.FAILED, str(error))
    except Fenced:
        raise
    except AutomationError as unwritten:
        log.error("the failure could not be recorded", finding=repair.finding.key, error=str(unwritten))
    return Outcome.FAILED


async def _submission(deps: Deps, repair: Repair, repair_id: str, epoch: int, left_s: float) -> Outcome | None:
    """An attempt handed to the engine. It holds no lease, and its intent is not its operation's: a sweep that dies here leaves one that the
    next sweep closes, while the operation still waits."""
    if left_s < submission.LIMIT_S:
        return None
    async with deps.database.write(epoch=epoch) as tx:
        if await _stopped_since(tx, repair.finding):
            return None
        await repairs.intent(tx, repair, epoch, repair_id=repair_id)
    await deps.boundary(f"repair:{repair.action}:intent")
    try:
        async with asyncio.timeout(submission.LIMIT_S):
            outcome, detail = await submission.submit(deps, repair.finding, epoch)
    except Fenced as error:
        await _superseded(deps, epoch, error)
        outcome, detail = Outcome.ALREADY_HEALED, str(error)
    except AutomationError as error:
        outcome, detail = Outcome.FAILED, str(error)
    except TimeoutError:
        outcome, detail = Outcome.UNVERIFIED, f"not finished in {submission.LIMIT_S:g} s"
    return await _outcome(deps, repair, repair_id, None, epoch, outcome, detail)


async def _operation(deps: Deps, repair: Repair, repair_id: str, epoch: int, left_s: float) -> Outcome | None:
    """Intent, effect and outcome of an operation repair are one transaction: it only changes the database."""
    may_live = repair.action is Action.FAIL_STUCK
    if left_s < END_RUN_S + (CANCEL_S if may_live else 0.0):
        return None
    async with deps.database.write(epoch=epoch) as tx:
        if await _stopped_since(tx, repair.finding):
            return None
        await repairs.intent(tx, repair, epoch, repair_id=repair_id, operation_id=repair.finding.operation_id)
        done = await operation_repairs.order(deps, tx, repair.finding, repair.action)
        outcome = Outcome.REPAIRED if done else Outcome.ALREADY_HEALED
        await repairs.outcome(tx, repair_id, outcome, "")
        await _announce(deps, tx, _Told.of(repair), repair_id, outcome, "")
        generation = await control.generation(tx)
    await deps.boundary(f"repair:{repair.action}:effect")
    attempt = repair.finding.evidence.get("attempt")
    if outcome is Outcome.REPAIRED and repair.action in _ENDS_RUN and isinstance(attempt, int) and repair.finding.operation_id is not None:
        key = engine_key(generation, repair.finding.operation_id, attempt)
        if not (may_live and await _cancelled(deps, key)):
            await _end_run(deps, key)
    return outcome


async def _ordered(deps: Deps, repair: Repair, repair_id: str, epoch: int, left_s: float) -> Outcome | None:
    """Intent and operation in one transaction; the intent stays open until the operation has ended. It takes no lease: the run does."""
    if left_s < ordering.LIMIT_S:
        return None
    finding = repair.finding
    assert finding.server_id is not None
    try:
        async with asyncio.timeout(ordering.LIMIT_S):
            drifted = await ordering.drifted(deps, finding)
    except TimeoutError as error:
        raise DeadlineExceeded(f"look at {finding.subject}", why=f"not finished in {ordering.LIMIT_S:g} s") from error
    try:
        async with deps.database.write(epoch=epoch) as tx:
            if await _stopped_since(tx, finding) or not await _approved(tx, repair):
                return None
            if not drifted:
                await repairs.intent(tx, repair, epoch, repair_id=repair_id)
                await repairs.outcome(tx, repair_id, Outcome.ALREADY_HEALED)
                await _announce(deps, tx, _Told.of(repair), repair_id, Outcome.ALREADY_HEALED, "")
                return Outcome.ALREADY_HEALED
            limit_ms = int(deps.settings.timing.operation_s * 1000)
            operation = await orders.repair(tx, finding.server_id, ordering.KINDS[repair.action], deadline_ms=limit_ms)
            await repairs.intent(tx, repair, epoch, repair_id=repair_id, operation_id=operation.id)
    except Fenced:
        raise
    except (Busy, Conflict) as error:
        log.info("not repaired now", finding=finding.key, why=str(error))
        return None
    await deps.boundary(f"repair:{repair.action}:intent")
    return Outcome.ORDERED


async def _cancelled(deps: Deps, key: str) -> bool:
    """Has the engine end a run that stands still, heartbeat or not, and its processes with it. False: it is not over within ``CANCEL_S``, for
    there is no worker, or no answer."""
    asked: set[str] = set()
    try:
        async with asyncio.timeout(CANCEL_S):
            while True:
                left = [run.id for run in (await deps.engine.runs([key])).values() if not run.finished]
                if not left:
                    return True
                for run_id in left:
                    if run_id not in asked:
                        await deps.engine.cancel(run_id)
                        asked.add(run_id)
                await asyncio.sleep(_LOOK_S)
    except (AutomationError, TimeoutError) as error:
        log.warning("its run was not cancelled", key=key, error=str(error))
        return False


async def _end_run(deps: Deps, key: str) -> None:
    """Tells the engine that a run is dead whose lease we revoked: it would hold its queue's slot for minutes. Fenced already, it can do
    nothing more; so an engine that does not answer only costs time, and no more of it than ``END_RUN_S``."""
    try:
        async with asyncio.timeout(END_RUN_S):
            for run in (await deps.engine.runs([key])).values():
                if not run.finished:
                    await deps.engine.give_up(run.id, "its lease expired; zlh took the operation over")
    except (AutomationError, TimeoutError) as error:
        log.warning("the engine could not be told", key=key, error=str(error))


async def _stopped_since(tx: Tx, finding: Finding) -> bool:
    """Whether a person has stopped automation here, or lowered its level, since the plan was made."""
    if finding.level > await control.repair_level(tx):
        return True
    held = {BrakeScope.ALL: "", BrakeScope.HOST: finding.host, BrakeScope.SERVER: finding.server_id}
    return any(held[brake.scope] == brake.target for brake in await brakes.active(tx))


async def _approved(tx: Tx, repair: Repair) -> bool:
    """Uses up the approval that the repair needs, if it needs one; False: it is gone since the plan was made."""
    if repair.action not in REVIEWED:
        return True
    return repair.review_id is not None and await reviews.carry_out(tx, repair.review_id, hash_of(plan_of(repair.finding)))


async def _intent(deps: Deps, repair: Repair, repair_id: str, epoch: int) -> Lease | None:
    subject = repair.finding.server_id or repair.finding.subject
    try:
        async with deps.database.write(epoch=epoch) as tx:
            if await _stopped_since(tx, repair.finding) or not await _approved(tx, repair):
                return None
            lease = await leases.take(
                tx, subject, LeaseKind.REPAIR, deps.holder, int(deps.settings.timing.lease_s * 1000), reason=repair.finding.key[:200]
            )
            await repairs.intent(tx, repair, epoch, repair_id=repair_id, lease=lease, counted=breakers.counts(repair.action))
            return lease
    except Busy as error:
        log.info("not repaired now", finding=repair.finding.key, why=str(error))
        return None


async def _outcome(deps: Deps, repair: Repair, repair_id: str, lease: Lease | None, epoch: int, outcome: Outcome, detail: str) -> Outcome:
    """Writes how it ended, and returns it. A fenced actor may append its outcome, marked ``fenced``, and nothing else. An outcome that the
    database did not take leaves intent and lease open: a later sweep closes both as unverified."""
    try:
        async with deps.database.write(epoch=epoch) as tx:
            if lease is not None:
                await leases.check(tx, lease.subject, lease.token)
                await leases.release(tx, lease.subject, lease.token)
            await repairs.outcome(tx, repair_id, outcome, detail[:1000])
            await _announce(deps, tx, _Told.of(repair), repair_id, outcome, detail)
    except Fenced as error:
        async with deps.database.write() as tx:
            await repairs.outcome(tx, repair_id, Outcome.FENCED, detail[:1000] or str(error)[:1000])
        await _superseded(deps, epoch, error)
        return Outcome.FENCED
    except AutomationError as error:
        log.error("the outcome could not be recorded", finding=repair.finding.key, outcome=outcome.value, error=str(error))
        return Outcome.UNVERIFIED
    return outcome


@dataclass(frozen=True, slots=True)
class _Told:
    """What a message about a repair says of it."""

    action: Action
    level: int
    summary: str
    where: str
    remedy: str = ""

    @classmethod
    def of(cls, repair: Repair) -> _Told:
        finding = repair.finding
        return cls(repair.action, finding.level, finding.summary, finding.where or finding.subject, finding.remedy)


async def _announce(deps: Deps, tx: Tx, told: _Told, repair_id: str, outcome: Outcome, detail: str) -> None:
    events = [
        Event(
            EventKind.CONTROLLER_ACTION,
            key=f"action/{repair_id}",
            what=f"{told.action}: {outcome}",
            where=told.where,
            done=told.summary + (f" ({detail[:300]})" if detail else ""),
            level=told.level,
        )
    ]
    if outcome is Outcome.REPAIRED:
        events.append(
            Event(
                EventKind.REPAIR_SUCCEEDED,
                key=f"repair/{repair_id}",
                what=f"repaired: {told.summary}",
                where=told.where,
                done=f"{told.action}, proven by reading it again",
                next="nothing to do",
                command=f"zlh repairs show {repair_id}",
                level=told.level,
            )
        )
    if outcome in (Outcome.FAILED, Outcome.UNVERIFIED):
        events += await _breaker(deps, tx, repair_id, told.summary, told.where, detail, told.remedy)
    for event in events:
        await outbox.put(tx, event, deps.route(event, tx.now))


async def _breaker(deps: Deps, tx: Tx, repair_id: str, summary: str, where: str, detail: str, remedy: str) -> list[Event]:
    """The critical alert, once, with the failure that opens the breaker."""
    policy = deps.settings.policy
    if not await repairs.opens_breaker(tx, repair_id, policy.breaker_attempts, int(policy.breaker_window_s * 1000)):
        return []
    return [
        Event(
            EventKind.BREAKER_OPENED,
            key=f"breaker/{repair_id}",
            what=f"breaker opened: {summary}",
            where=where,
            done=f"{policy.breaker_attempts} repairs failed within the hour, the last: {detail[:300]}",
            next="automation leaves it alone until the hour has passed",
            command=remedy or f"zlh repairs show {repair_id}",
            failed=True,
        )
    ]


async def announce_late(deps: Deps, tx: Tx, row: RepairRow, outcome: Outcome, detail: str) -> None:
    """A repair whose outcome a later sweep wrote: its operation has ended; or its actor died, or its effect might still have arrived, and it
    was closed as unverified. It counts, and may be the one that opens the breaker."""
    server = await servers.get(tx, row.server_id) if row.server_id else None
    where = f"{server.name} on {server.node}" if server is not None else row.subject
    told = _Told(row.action, row.level, f"{row.check} of {where}", where)
    await _announce(deps, tx, told, row.id, outcome, detail)
