"""One step: journal before, effect, journal after; retried within its deadline, stopped on request. The executor's hands."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from flows.act.context import Context, boundary_name
from flows.act.steps.base import FinalStep, Step
from flows.domain.operation import Direction, OperationKind, StepName, StepRow, StepState
from flows.errors import AutomationError, DeadlineExceeded, Fenced, Temporary
from flows.state import attempts, customers, journal, leases, operations

#: First and longest pause between two tries within a step, seconds.
BACKOFF_S = (0.5, 10.0)


class StopRequested(Exception):
    """Somebody asked to cancel the operation (or to delete the server that it creates)."""


class Stepper:
    """Runs steps of one claimed attempt. Raises AutomationError once a step has failed for good, StopRequested, or Fenced."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    async def do(self, step: Step) -> None:
        if not await self._begin(step, Direction.DO):
            return
        if step.skipped_when_suspended and self.ctx.suspended:
            await self._done(step, Direction.DO, {"skipped": "customer suspended"})
            return
        await self._reach(step, Direction.DO, lambda: step.do(self.ctx), step.already_done)

    async def undo(self, step: Step) -> None:
        if await self._begin(step, Direction.UNDO):
            await self._reach(step, Direction.UNDO, lambda: step.undo(self.ctx), None)

    async def finish(self, step: FinalStep) -> None:
        """``prepare`` is retried; then one transaction ends step, attempt, operation and lease."""
        ctx = self.ctx
        await self._begin(step, Direction.DO)
        await self._watched(step, Direction.DO, lambda: step.prepare(ctx), None)
        async with ctx.deps.database.write() as tx:
            await ctx.check(tx)
            operation = await operations.get(tx, ctx.operation.id)
            if operation is not None and operation.cancel_requested and operation.kind is OperationKind.PROVISION:
                raise StopRequested
            await step.commit(ctx, tx)
            await journal.done(tx, ctx.operation.id, step.name, Direction.DO)
            await attempts.end(tx, ctx.operation.id, ctx.operation.attempt, "succeeded")
            await leases.release(tx, ctx.server.id, ctx.token)

    async def _begin(self, step: Step, direction: Direction) -> bool:
        """Writes the journal before the effect. False: done by an earlier attempt, never run again."""
        ctx = self.ctx
        async with ctx.deps.database.write() as tx:
            await ctx.check(tx)
            operation = await operations.get(tx, ctx.operation.id)
            if operation is None:
                raise Fenced("operation", why="its record is gone")
            if direction is Direction.DO and operation.cancel_requested and operation.kind is OperationKind.PROVISION:
                raise StopRequested
            ctx.operation = operation
            ctx.suspended = await customers.is_suspended(tx, ctx.server.customer_id)
            row = await self._row(await journal.rows(tx, operation.id), step.name, direction)
            if row is not None and row.state is StepState.DONE:
                return False
            deadline = tx.now + int(step.deadline_s * ctx.deps.settings.timing.step_factor * 1000)
            upid = row.upid if row is not None else None
            ctx.row = await journal.begin(tx, operation.id, step.name, direction, operation.attempt, deadline)
            if upid is not None and ctx.row.upid is None:
                await journal.set_upid(tx, operation.id, step.name, direction, upid)
            await operations.set_step(tx, operation.id, step.name, deadline)
        await ctx.deps.boundary(boundary_name(step.name, direction, "begun"))
        return True

    @staticmethod
    async def _row(rows: tuple[StepRow, ...], name: StepName, direction: Direction) -> StepRow | None:
        return next((r for r in rows if r.step is name and r.direction is direction), None)

    async def _reach(
        self, step: Step, direction: Direction, effect: Callable[[], Awaitable[None]], proof: Callable[[Context], Awaitable[bool]] | None
    ) -> None:
        try:
            await self._watched(step, direction, effect, proof)
        except (Fenced, StopRequested):
            raise
        except AutomationError as error:
            async with self.ctx.deps.database.write() as tx:
                await self.ctx.check(tx)
                await journal.failed(tx, self.ctx.operation.id, step.name, direction, {"error": str(error)})
            raise
        await self.ctx.deps.boundary(boundary_name(step.name, direction, "effect"))
        await self._done(step, direction, {})

    async def _done(self, step: Step, direction: Direction, detail: dict[str, object]) -> None:
        async with self.ctx.deps.database.write() as tx:
            await self.ctx.check(tx)
            await journal.done(tx, self.ctx.operation.id, step.name, direction, detail)
        await self.ctx.deps.boundary(boundary_name(step.name, direction, "done"))

    async def _watched(
        self, step: Step, direction: Direction, effect: Callable[[], Awaitable[None]], proof: Callable[[Context], Awaitable[bool]] | None
    ) -> None:
        """The step's work, ended early by a cancellation request, in any case at its deadline."""
        work = asyncio.create_task(self._tries(step, effect, proof), name=f"step {step.name}")
        watch = asyncio.create_task(self._cancel_request()) if direction is Direction.DO else None
        try:
            await asyncio.wait({work} | ({watch} if watch else set()), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and watch is not None and watch.done():
                watch.result()
                raise StopRequested
            await work
        finally:
            for task in (work, watch):
                if task is not None and not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, AutomationError):
                        await task

    async def _tries(self, step: Step, effect: Callable[[], Awaitable[None]], proof: Callable[[Context], Awaitable[bool]] | None) -> None:
        """Tries until the deadline as long as failures are temporary. From the second try on, and after an interruption, the proof is
        asked first, so that what is not idempotent is never repeated blindly."""
        assert self.ctx.row is not None
        ask, pause, last = self.ctx.row.runs > 1, BACKOFF_S[0], None
        deadline_s = step.deadline_s * self.ctx.deps.settings.timing.step_factor
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    try:
                        if not (ask and proof is not None and await proof(self.ctx)):
                            await effect()
                        return
                    except Temporary as error:
                        last, ask = error, True
                        self.ctx.say(f"{step.name}: {error}; trying again")
                        wait = error.retry_after if error.retry_after is not None else pause
                        await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, no secret
                        pause = min(pause * 2, BACKOFF_S[1])
        except TimeoutError:
            raise DeadlineExceeded(f"step {step.name}", why=f"not done in {deadline_s:.0f} s" + (f"; last: {last}" if last else "")) from last

    async def _cancel_request(self) -> None:
        """Returns when the operation is asked to stop. An unreachable database is waited out: the heartbeat judges that."""
        while True:
            await asyncio.sleep(self.ctx.deps.settings.timing.heartbeat_s / 3)
            if self.ctx.operation.kind is not OperationKind.PROVISION:
                continue
            with contextlib.suppress(Temporary):
                async with self.ctx.deps.database.read() as tx:
                    operation = await operations.get(tx, self.ctx.operation.id)
                if operation is not None and operation.cancel_requested:
                    return
