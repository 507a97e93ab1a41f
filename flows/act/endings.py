"""How operations end other than well. Each is one transaction under the lease, with its alert in it."""

from __future__ import annotations

import time

from flows.act.context import Context
from flows.act.steps.create import Found, find
from flows.act.steps.final import OUTLASTS_A_CLONE_S, release
from flows.domain.event import Event, EventKind
from flows.domain.operation import OperationKind, OperationState, Queue
from flows.errors import AutomationError, Busy, Conflict, Unproven
from flows.state import attempts, leases, operations, outbox, servers, vmids
from flows.state.database import Tx


def as_json(error: AutomationError) -> dict[str, str]:
    """An error as stored with an operation and shown to people."""
    return {"type": type(error).__name__, "what": error.what, "why": error.why, "remedy": error.remedy}


async def begin_compensation(ctx: Context, error: AutomationError | None, *, cancelled: bool) -> None:
    """From here on every attempt undoes."""

    async def begin(tx: Tx) -> None:
        operation = await operations.get(tx, ctx.operation.id)
        if operation is not None and operation.state is OperationState.COMPENSATING:
            return  # by a commit whose answer was lost
        if cancelled:
            await operations.set_state(tx, ctx.operation.id, OperationState.CANCELLING)
        await operations.set_state(tx, ctx.operation.id, OperationState.COMPENSATING, error=as_json(error) if error else None)

    await ctx.write(begin)
    await ctx.deps.boundary("compensating")
    await ctx.refresh()


async def compensated(ctx: Context) -> str:
    """Everything undone: the server ends as failed, or deleted where a person cancelled. The VMID is released only when its container is
    proven absent; one that exists and is not ours is burnt."""
    server = ctx.server
    absent = await _absent(ctx)

    async def end(tx: Tx) -> str:
        await release(ctx, tx)
        if not absent:
            await vmids.burn(
                tx,
                server.vmid,
                f"a container that is not ours, seen by operation {ctx.operation.id}",
                actor=ctx.operation.actor,
                server_id=ctx.server.id,
            )
        operation = await operations.get(tx, ctx.operation.id)
        cancelled = operation is not None and operation.cancel_requested
        if cancelled:
            await servers.mark_deleted(tx, server.id, ctx.operation.actor)
        else:
            await servers.mark_failed(tx, server.id, ctx.operation.actor)
        state = OperationState.CANCELLED if cancelled else OperationState.FAILED
        await operations.set_state(tx, ctx.operation.id, state)
        await _end(ctx, tx, state.value)
        if not cancelled:
            done = "everything is released" if absent else f"everything of ours is released; VMID {server.vmid} is burnt: it is somebody else's"
            await _alert(ctx, tx, EventKind.PROVISIONING_FAILED, f"provisioning of {server.name} failed", done)
        return state.value

    return await ctx.write(end)


async def _absent(ctx: Context) -> bool:
    """False: what is there is not ours, by its own marks. Raises Conflict where it is ours after all, Unproven while nobody can tell: a
    clone of the same template for somebody else leaves it open for as long as it runs."""
    ends = time.monotonic() + OUTLASTS_A_CLONE_S * ctx.deps.settings.timing.step_factor
    while True:
        try:
            found = await find(ctx)
            if found in (Found.NOTHING, Found.FOREIGN):
                return found is Found.NOTHING
            raise Conflict(f"container {ctx.server.vmid}", why="it is still there, and it is ours", remedy=f"pct config {ctx.server.vmid}")
        except (Busy, Unproven):
            if time.monotonic() >= ends:
                raise
        await ctx.pause(ctx.deps.settings.timing.ready_poll_s)


async def cleanup_required(ctx: Context, error: AutomationError) -> str:
    """An undo (or a deletion) failed: the sweep tries again with back-off, and after three times a person is called. What nobody could
    tell is no failure, for as long as the operation had for itself: other servers' clones may leave it open for a while."""

    async def end(tx: Tx) -> str:
        await operations.set_state(tx, ctx.operation.id, OperationState.CLEANUP_REQUIRED, error=as_json(error))
        if not _unproven(error) or tx.now >= ctx.operation.deadline_at:
            await operations.undo_failed(tx, ctx.operation.id)
        await _end(ctx, tx, OperationState.CLEANUP_REQUIRED.value)
        return OperationState.CLEANUP_REQUIRED.value

    return await ctx.write(end)


def _unproven(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, Unproven):
        error = error.__cause__
    return error is not None


async def try_again_or_fail(ctx: Context, error: AutomationError) -> str:
    """Start, stop and restart have no undo: another attempt, after the last one ``failed`` with the lease released."""

    async def end(tx: Tx) -> str:
        await _end(ctx, tx, OperationState.FAILED.value)
        again = ctx.operation.queue is not Queue.REPAIRS  # a repair is tried again by the sweep, which counts
        if again and ctx.operation.claimed < ctx.deps.settings.policy.max_attempts and tx.now < ctx.operation.deadline_at:
            await attempts.next_attempt(tx, ctx.operation.id)
            return "retrying"
        await operations.set_state(tx, ctx.operation.id, OperationState.FAILED, error=as_json(error))
        await _alert(ctx, tx, EventKind.OPERATION_FAILED, f"{ctx.operation.kind} of {ctx.server.name} failed", str(error))
        return OperationState.FAILED.value

    return await ctx.write(end)


async def fail_without_undo(ctx: Context) -> str:
    """A compensation was ordered for an operation that has none: it ends as failed; a deletion waits for its next try."""
    reason = AutomationError(f"{ctx.operation.kind} of {ctx.server.name}", why="ended by the controller", remedy="zlh explain " + ctx.server.name)
    if ctx.operation.kind is OperationKind.DELETE:
        return await cleanup_required(ctx, reason)

    async def end(tx: Tx) -> str:
        await operations.set_state(tx, ctx.operation.id, OperationState.FAILED, error=dict(ctx.operation.error or as_json(reason)))
        await _end(ctx, tx, OperationState.FAILED.value)
        await _alert(ctx, tx, EventKind.OPERATION_FAILED, f"{ctx.operation.kind} of {ctx.server.name} failed", "its lease is released")
        return OperationState.FAILED.value

    return await ctx.write(end)


async def _end(ctx: Context, tx: Tx, outcome: str) -> None:
    await attempts.end(tx, ctx.operation.id, ctx.operation.attempt, outcome)
    await leases.release(tx, ctx.server.id, ctx.token)


async def _alert(ctx: Context, tx: Tx, kind: EventKind, what: str, done: str) -> None:
    if ctx.operation.queue is Queue.REPAIRS:
        return  # the repair's own outcome is told by the sweep, and its breaker when it opens
    error = ctx.operation.error or {}
    event = Event(
        kind,
        key=f"{kind.value}/{ctx.operation.id}/{ctx.operation.attempt}",
        what=what,
        where=f"ct {ctx.server.vmid} on {ctx.server.node}",
        done=" ".join(
            part for part in (f"step {ctx.operation.step}:" if ctx.operation.step else "", error.get("why") or error.get("what", ""), done) if part
        ),
        next="nothing is left behind" if kind is EventKind.PROVISIONING_FAILED else "the server keeps its state",
        command=f"zlh operations show {ctx.operation.id}",
        failed=True,
    )
    await outbox.put(tx, event, ctx.deps.route(event, tx.now))
