"""One step: journal before, effect, journal after; retried within its deadline, stopped on request. The executor's hands."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from enum import Enum

from flows.act.context import Context, boundary_name
from flows.act.steps.base import FinalStep, Step
from flows.act.tasks import ended
from flows.domain.operation import Direction, OperationKind, StepName, StepRow, StepState
from flows.errors import AutomationError, DeadlineExceeded, Fenced, Temporary
from flows.state import attempts, customers, journal, leases, operations
from flows.state.database import Tx

#: First and longest pause between two tries within a step, seconds.
BACKOFF_S = (0.5, 10.0)


class Begun(Enum):
    YES = "yes"
    DONE = "done"  # by an earlier attempt
    LEFT_OUT = "left out"


class StopRequested(Exception):
    """Somebody asked to cancel the operation (or to delete the server that it creates)."""


class Stepper:
    """Runs steps of one claimed attempt. Raises AutomationError once a step has failed for good, StopRequested, or Fenced."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    async def do(self, step: Step) -> bool:
        """False: left out, because its customer is suspended; it is no part of the journal and may be done later."""
        begun = await self._begin(step, Direction.DO)
        if begun is Begun.YES:
            await self._reach(step, Direction.DO, lambda: step.do(self.ctx), step.already_done)
        return begun is not Begun.LEFT_OUT

    async def undo(self, step: Step) -> None:
        if await self._begin(step, Direction.UNDO) is Begun.YES:
            await self._reach(step, Direction.UNDO, lambda: step.undo(self.ctx), None)

    async def finish(self, step: FinalStep) -> bool:
        """``prepare`` is retried; then one transaction ends step, attempt, operation and lease. False, with nothing written: the customer
        is no longer suspended, so what was left out must be done first."""
        ctx = self.ctx
        left_out = ctx.suspended
        await self._begin(step, Direction.DO)
        if left_out and not ctx.suspended:
            return False
        await self._watched(step, Direction.DO, lambda: step.prepare(ctx), None)

        async def end(tx: Tx) -> bool:
            operation = await operations.get(tx, ctx.operation.id)
            if operation is not None and operation.cancel_requested and operation.kind is OperationKind.PROVISION:
                raise StopRequested
            if ctx.suspended and not await customers.is_suspended(tx, ctx.server.customer_id):
                return False
            await step.commit(ctx, tx)
            await journal.done(tx, ctx.operation.id, step.name, Direction.DO)
            await attempts.end(tx, ctx.operation.id, ctx.operation.attempt, "succeeded")
            await leases.release(tx, ctx.server.id, ctx.token)
            return True

        return await ctx.write(end)

    async def _begin(self, step: Step, direction: Direction) -> Begun:
        """Writes the journal before the effect. What an earlier attempt has done is never run again."""
        ctx = self.ctx

        async def begin(tx: Tx) -> Begun:
            operation = await operations.get(tx, ctx.operation.id)
            if operation is None:
                raise Fenced("operation", why="its record is gone")
            if direction is Direction.DO and operation.cancel_requested and operation.kind is OperationKind.PROVISION:
                raise StopRequested
            ctx.operation = operation
            ctx.suspended = await customers.is_suspended(tx, ctx.server.customer_id)
            row = self._row(await journal.rows(tx, operation.id), step.name, direction)
            if row is not None and row.state is StepState.DONE:
                return Begun.DONE
            if direction is Direction.DO and step.left_out(ctx):
                return Begun.LEFT_OUT
            deadline = tx.now + int(step.limit_s(ctx) * 1000)
            upid = row.upid if row is not None else None
            ctx.row = await journal.begin(tx, operation.id, step.name, direction, operation.attempt, deadline)
            if upid is not None and ctx.row.upid is None:
                await journal.set_upid(tx, operation.id, step.name, direction, upid)
            await operations.set_step(tx, operation.id, step.name, deadline)
            return Begun.YES

        begun = await ctx.write(begin)
        if begun is Begun.LEFT_OUT:
            ctx.say(f"{step.name} left out: the customer is suspended")
        if begun is Begun.YES:
            await ctx.deps.boundary(boundary_name(step.name, direction, "begun"))
        return begun

    @staticmethod
    def _row(rows: tuple[StepRow, ...], name: StepName, direction: Direction) -> StepRow | None:
        return next((r for r in rows if r.step is name and r.direction is direction), None)

    async def _reach(
        self, step: Step, direction: Direction, effect: Callable[[], Awaitable[None]], proof: Callable[[Context], Awaitable[bool]] | None
    ) -> None:
        try:
            await self._watched(step, direction, effect, proof)
        except (Fenced, StopRequested):
            raise
        except AutomationError as error:
            await self._note(step, direction, StepState.FAILED, {"error": str(error)})
            raise
        await self.ctx.deps.boundary(boundary_name(step.name, direction, "effect"))
        await self._note(step, direction, StepState.DONE, {})
        await self.ctx.deps.boundary(boundary_name(step.name, direction, "done"))

    async def _note(self, step: Step, direction: Direction, state: StepState, detail: dict[str, object]) -> None:
        """Writes the journal after the effect."""
        write, operation_id = journal.done if state is StepState.DONE else journal.failed, self.ctx.operation.id

        async def note(tx: Tx) -> None:
            row = self._row(await journal.rows(tx, operation_id), step.name, direction)
            if row is None or row.state is not state:  # not yet, or not by a commit whose answer was lost
                await write(tx, operation_id, step.name, direction, detail)

        await self.ctx.write(note)

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
                if task is not None:
                    await ended(task)

    async def _tries(self, step: Step, effect: Callable[[], Awaitable[None]], proof: Callable[[Context], Awaitable[bool]] | None) -> None:
        """Tries until the deadline as long as failures are temporary. From the second try on, and after an interruption, the proof is
        asked first, so that what is not idempotent is never repeated blindly."""
        assert self.ctx.row is not None
        ask, pause, last = self.ctx.row.runs > 1, BACKOFF_S[0], None
        self.ctx.again = ask
        deadline_s = step.limit_s(self.ctx)
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
