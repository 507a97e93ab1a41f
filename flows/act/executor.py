"""Carries one attempt of one operation: claim, steps under a lease, and an end that leaves nothing half done.

The flows ``provision``, ``deprovision`` and ``operate`` call :func:`run`; so does a bare process in kill tests. It may die at
any instruction: whoever comes next reads the journal, asks the world about the interrupted step, and goes on from there.

::

    queued ──claim──▶ running ──steps──▶ succeeded
                        │ failure or cancellation
                        ▼
                   compensating ──undo in reverse──▶ failed | cancelled
                        │ an undo failed
                        ▼
                  cleanup_required ──the sweep──▶ compensating (again)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from flows.act import endings
from flows.act.context import Context, boundary_name
from flows.act.deps import Deps
from flows.act.heartbeat import Heartbeat
from flows.act.stepping import Stepper, StopRequested
from flows.act.steps.base import FinalStep, Step
from flows.act.steps.registry import STEPS
from flows.domain.lease import Lease
from flows.domain.operation import (
    FORWARD_ONLY,
    NO_UNDO,
    Direction,
    Operation,
    OperationState,
    StepState,
    steps_of,
)
from flows.errors import AutomationError, Busy, Fenced
from flows.state import attempts, customers, journal, operations, servers

log = structlog.get_logger(__name__)

#: Outcome of a run that found its attempt, lease or generation taken by somebody newer.
SUPERSEDED = "superseded"
#: Outcomes of attempts that came to their own end.
_ENDS = frozenset(s.value for s in (OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED, OperationState.CLEANUP_REQUIRED))
_UNDOING = frozenset({OperationState.CANCELLING, OperationState.COMPENSATING})


async def run(deps: Deps, operation_id: str, attempt: int, generation: int, say: Callable[[str], None] | None = None) -> str:
    """Runs attempt ``attempt`` to its end and returns the outcome: ``succeeded``, ``failed``, ``cancelled``, ``cleanup_required``,
    ``retrying`` or ``superseded``. Raises only Temporary errors of the database; the sweep then takes care."""
    say = say or (lambda line: log.info(line, operation=operation_id))
    try:
        operation, lease = await _claim(deps, operation_id, attempt, generation)
    except Fenced as error:
        say(f"superseded: {error}")
        return SUPERSEDED
    await deps.boundary("claimed")
    say(f"attempt {attempt} of {operation.kind} {operation_id} claimed under lease token {lease.token}")
    try:
        async with Heartbeat(deps.database, deps.settings.timing, operation.server_id, lease.token, deps.abandon, generation) as beat:
            return await _Run(await _context(deps, operation, lease, beat, say)).carry()
    except Fenced as error:
        say(f"fenced: {error}")
        return await _fenced(deps, operation_id, attempt)


async def _fenced(deps: Deps, operation_id: str, attempt: int) -> str:
    """What became of an attempt that holds its lease no longer: usually somebody newer took it; but where the answer to its last commit
    was lost, the attempt itself gave the lease back, and that commit says how it ended."""
    async with deps.database.write() as tx:
        if await attempts.end(tx, operation_id, attempt, "fenced"):
            return SUPERSEDED
        rows = await attempts.list_(tx, operation_id)
    outcome = next((row.outcome for row in rows if row.attempt == attempt), None)
    if outcome == OperationState.FAILED.value and rows[-1].attempt > attempt:
        return "retrying"
    return outcome if outcome in _ENDS else SUPERSEDED


async def _claim(deps: Deps, operation_id: str, attempt: int, generation: int) -> tuple[Operation, Lease]:
    """The attempt and the lease in one transaction. A lease held for a moment (a repair, say) is waited for, one expiry at most."""
    timing = deps.settings.timing
    waited = 0.0
    while True:
        try:
            async with deps.database.write() as tx:
                return await attempts.claim_run(tx, operation_id, attempt, generation, deps.holder, int(timing.lease_s * 1000))
        except Busy:
            if waited >= timing.lease_s:
                raise
            await asyncio.sleep(min(1.0, timing.heartbeat_s))
            waited += min(1.0, timing.heartbeat_s)


async def _context(deps: Deps, operation: Operation, lease: Lease, beat: Heartbeat, say: Callable[[str], None]) -> Context:
    async with deps.database.read() as tx:
        server = await servers.get(tx, operation.server_id)
        if server is None:
            raise Fenced(f"operation {operation.id}", why="its server has no record")
        return Context(deps, operation, server, lease.token, beat, say, suspended=await customers.is_suspended(tx, server.customer_id))


class _Run:
    """One claimed attempt."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.stepper = Stepper(ctx)

    async def carry(self) -> str:
        if self.ctx.operation.state in _UNDOING:
            return await self._compensate()
        try:
            return await self._forward()
        except StopRequested:
            self.ctx.say("cancellation requested: undoing")
            await endings.begin_compensation(self.ctx, error=None, cancelled=True)
            return await self._compensate()
        except Fenced:
            raise
        except AutomationError as error:
            return await self._failed(error)

    async def _forward(self) -> str:
        ctx = self.ctx
        names = steps_of(ctx.operation.kind, ctx.server.ctype)
        left_out: list[Step] = []
        for index, name in enumerate(names):
            step = STEPS[name]
            ctx.say(f"step {index + 1}/{len(names)} {name}")
            if isinstance(step, FinalStep):
                while not await self.stepper.finish(step):
                    left_out = [late for late in left_out if not await self.stepper.do(late)]
                await ctx.deps.boundary(boundary_name(name, Direction.DO, "done"))
                return OperationState.SUCCEEDED.value
            if not await self.stepper.do(step):
                left_out.append(step)
        raise AssertionError(f"{self.ctx.operation.kind} has no final step")

    async def _failed(self, error: AutomationError) -> str:
        ctx = self.ctx
        ctx.say(f"failed: {error}")
        if ctx.operation.kind in FORWARD_ONLY:
            return await endings.cleanup_required(ctx, error)
        if ctx.operation.kind in NO_UNDO:
            return await endings.try_again_or_fail(ctx, error)
        await endings.begin_compensation(ctx, error, cancelled=False)
        return await self._compensate()

    async def _compensate(self) -> str:
        """Undo in reverse from the step reached."""
        ctx = self.ctx
        try:
            if ctx.operation.kind in NO_UNDO or ctx.operation.kind in FORWARD_ONLY:
                return await endings.fail_without_undo(ctx)
            rows = await ctx.write(lambda tx: journal.rows(tx, ctx.operation.id))
            begun = {row.step for row in rows if row.direction is Direction.DO}
            undone = {row.step for row in rows if row.direction is Direction.UNDO and row.state is StepState.DONE}
            for name in reversed(steps_of(ctx.operation.kind, ctx.server.ctype)):
                if name in begun and name not in undone:
                    ctx.say(f"undo {name}")
                    await self.stepper.undo(STEPS[name])
            outcome = await endings.compensated(ctx)
            await ctx.deps.boundary("compensated")
            return outcome
        except Fenced:
            raise
        except AutomationError as error:
            ctx.say(f"undo failed: {error}")
            return await endings.cleanup_required(ctx, error)


async def outcome_of(deps: Deps, operation_id: str) -> Operation | None:
    """The operation as it stands, for flows that report their end."""
    async with deps.database.read() as tx:
        return await operations.get(tx, operation_id)
