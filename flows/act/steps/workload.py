"""Steps that start, stop and restart what a container is for."""

from __future__ import annotations

from flows.act.context import Context
from flows.act.steps.base import Effect, Step
from flows.domain.agent import WorkloadState
from flows.domain.operation import OperationKind, StepName
from flows.domain.server import ContainerType
from flows.errors import AmbiguousEffect, NotFound, TaskFailed, Unreachable

#: States in which a stopped game has nothing left to lose.
AT_REST = frozenset({WorkloadState.STOPPED, WorkloadState.CRASHED, WorkloadState.ERROR})


async def wait_ready(ctx: Context) -> None:
    """Until ``/ready`` says yes. A workload that ends in ``error`` is a failure at once; the step's deadline bounds the rest."""
    while True:
        try:
            ready, reason = await ctx.deps.agents.ready(ctx.server)
            if ready:
                return
            status = await ctx.deps.agents.status(ctx.server)
            if status.state is WorkloadState.ERROR:
                raise TaskFailed(f"start of {ctx.server.name}", why=f"the workload ended in error: {status.last_crash or reason}")
        except Unreachable as error:
            ctx.say(f"waiting for the agent: {error.why}")
        await ctx.pause(ctx.deps.settings.timing.ready_poll_s)


class StartWorkload(Step):
    name = StepName.START_WORKLOAD
    deadline_s = 600.0
    effect = Effect.FENCED
    skipped_when_suspended = True

    async def already_done(self, ctx: Context) -> bool:
        ready, _ = await ctx.deps.agents.ready(ctx.server)
        return ready

    async def do(self, ctx: Context) -> None:
        if ctx.server.ctype is ContainerType.GAME:
            try:
                await ctx.deps.agents.start(ctx.server, ctx.token)
            except AmbiguousEffect:
                ctx.say("the answer to the start was lost; it is idempotent there, waiting for readiness")
        await wait_ready(ctx)

    async def undo(self, ctx: Context) -> None:
        if ctx.operation.kind is OperationKind.PROVISION:
            await stop_gracefully(ctx)


async def stop_gracefully(ctx: Context) -> None:
    """Asks the agent and waits for its word. A container that is gone or down has nothing running; silence of an agent in a running
    container is no answer, but whoever calls this ends the container next, so it is said and passed over."""
    server = ctx.server
    try:
        if await ctx.deps.proxmox.status(server.node, server.vmid) != "running":
            return
    except NotFound:
        return
    try:
        await ctx.deps.agents.stop(server, ctx.token)
        while (await ctx.deps.agents.status(server)).state not in AT_REST:
            await ctx.pause(ctx.deps.settings.timing.ready_poll_s)
    except (Unreachable, AmbiguousEffect) as error:
        ctx.say(f"the agent of {server.name} gives no answer to a graceful stop: {error.why}")


class StopWorkload(Step):
    """Games stop through their agent and keep their container; a developer container is shut down; a deletion does either and goes on."""

    name = StepName.STOP_WORKLOAD
    deadline_s = 300.0
    effect = Effect.FENCED

    async def do(self, ctx: Context) -> None:
        server = ctx.server
        if ctx.operation.kind is OperationKind.DELETE:
            if server.ctype is ContainerType.GAME:
                await stop_gracefully(ctx)
            return
        if server.ctype is ContainerType.DEV:
            await ctx.settle()
            if await ctx.deps.proxmox.status(server.node, server.vmid) == "running":
                await ctx.task(await ctx.proxmox.shutdown(server.node, server.vmid, 60))
            return
        if await ctx.deps.proxmox.status(server.node, server.vmid) != "running":
            return
        await ctx.deps.agents.stop(server, ctx.token)
        while (await ctx.deps.agents.status(server)).state not in AT_REST:
            await ctx.pause(ctx.deps.settings.timing.ready_poll_s)


class RestartWorkload(Step):
    """The journal's ``runs`` says whether an interrupted run may have restarted it already: then readiness alone is asked for."""

    name = StepName.RESTART_WORKLOAD
    deadline_s = 600.0
    effect = Effect.FENCED

    async def do(self, ctx: Context) -> None:
        server = ctx.server
        if server.ctype is ContainerType.DEV:
            await ctx.settle()
            if await ctx.deps.proxmox.status(server.node, server.vmid) == "running":
                await ctx.task(await ctx.proxmox.shutdown(server.node, server.vmid, 60))
            await ctx.task(await ctx.proxmox.start(server.node, server.vmid))
        elif not await self._restarted_since(ctx):
            try:
                await ctx.deps.agents.restart(server, ctx.token)
            except AmbiguousEffect:
                ctx.say("the answer to the restart was lost; looking at the uptime")
        await wait_ready(ctx)

    async def _restarted_since(self, ctx: Context) -> bool:
        """Whether the workload is younger than this step: a restart is not idempotent, so the world is asked first."""
        assert ctx.row is not None
        if ctx.row.runs <= 1:
            return False
        status = await ctx.deps.agents.status(ctx.server)
        async with ctx.deps.database.read() as tx:
            age_s = (tx.now - ctx.row.started_at) / 1000
        return status.state in (WorkloadState.STARTING, WorkloadState.STOPPING) or (status.state is WorkloadState.RUNNING and status.uptime_s < age_s)
