"""Steps that start, stop and restart what a container is for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from flows.act.context import Context
from flows.act.steps.base import Effect, Step
from flows.domain.agent import WorkloadState
from flows.domain.operation import OperationKind, StepName
from flows.domain.server import ContainerType
from flows.errors import AmbiguousEffect, AutomationError, Busy, NotFound, TaskFailed, Unproven, Unreachable

#: States in which a stopped game has nothing left to lose.
AT_REST = frozenset({WorkloadState.STOPPED, WorkloadState.CRASHED, WorkloadState.ERROR})
#: How long an agent may take to stop a game whose container ends next, seconds.
GRACE_S = 120.0


#: How long a workload may take until ``/ready`` says yes, by flavor, seconds. A first start makes the world; Fabric loads its mods before.
READY_S: Mapping[str, float] = {"vanilla": 600.0, "paper": 600.0, "fabric": 900.0, "dev": 300.0, "debian": 300.0}


def _ready_limit_s(step: Step, ctx: Context) -> float:
    """An unknown flavor has the step's own deadline."""
    return READY_S.get(ctx.server.flavor, step.deadline_s) * ctx.deps.settings.timing.step_factor


async def wait_ready(ctx: Context) -> None:
    """Until ``/ready`` says yes. A workload that ends in ``error`` is a failure at once; the step's deadline bounds the rest. Raises Busy where
    a game is stopped and nothing is under way: what was ordered did not arrive, or was lost with its agent, and is ordered again."""
    while True:
        try:
            ready, reason = await ctx.deps.agents.ready(ctx.server)
            if ready:
                return
            status = await ctx.deps.agents.status(ctx.server)
            if status.state is WorkloadState.ERROR:
                raise TaskFailed(f"start of {ctx.server.name}", why=f"the workload ended in error: {status.last_crash or reason}")
            if status.state is WorkloadState.STOPPED and status.operation is None and ctx.server.ctype is ContainerType.GAME:
                raise Busy(f"start of {ctx.server.name}", why="its agent says that it is stopped and that nothing is under way")
        except Unreachable as error:
            ctx.say(f"waiting for the agent: {error.why}")
        await ctx.pause(ctx.deps.settings.timing.ready_poll_s)


class StartWorkload(Step):
    name = StepName.START_WORKLOAD
    deadline_s = 600.0
    effect = Effect.FENCED
    skipped_when_suspended = True

    def limit_s(self, ctx: Context) -> float:
        return _ready_limit_s(self, ctx)

    async def already_done(self, ctx: Context) -> bool:
        ready, _ = await ctx.deps.agents.ready(ctx.server)
        return ready

    async def do(self, ctx: Context) -> None:
        if ctx.server.ctype is ContainerType.GAME:
            await ctx.sent(ctx.deps.agents.start(ctx.server, ctx.token))
        await wait_ready(ctx)

    async def undo(self, ctx: Context) -> None:
        if ctx.operation.kind is OperationKind.PROVISION:
            await stop_gracefully(ctx)


async def stop_gracefully(ctx: Context) -> None:
    """Asks the agent and waits for its word, but not for ever: whoever calls this ends the container next, and what an agent answers or
    leaves unanswered is its customer's doing. A container that is gone or down has nothing running. Raises Fenced when the lease is lost."""
    server = ctx.server
    try:
        if await ctx.deps.proxmox.status(server.node, server.vmid) != "running":
            return
    except NotFound:
        return
    try:
        async with asyncio.timeout(GRACE_S * ctx.deps.settings.timing.step_factor):
            await _stopped_by_agent(ctx)
    except TimeoutError:
        ctx.say(f"the agent of {server.name} does not come to an end; its container is stopped")
    except AutomationError as error:
        await ctx.refresh()  # a refused token: ours, or the agent's lie?
        ctx.say(f"the agent of {server.name} does not stop gracefully: {error}")


async def _stopped_by_agent(ctx: Context) -> None:
    while True:
        try:
            await ctx.sent(ctx.deps.agents.stop(ctx.server, ctx.token))
            while (await ctx.deps.agents.status(ctx.server)).state not in AT_REST:
                await ctx.pause(ctx.deps.settings.timing.ready_poll_s)
            return
        except Busy as error:
            ctx.say(f"waiting for the agent of {ctx.server.name}: {error.why}")
            await ctx.pause(ctx.deps.settings.timing.ready_poll_s)


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
                await ctx.own()
                await ctx.task(ctx.proxmox.shutdown(server.node, server.vmid, 60))
            return
        if await ctx.deps.proxmox.status(server.node, server.vmid) != "running":
            return
        await ctx.sent(ctx.deps.agents.stop(server, ctx.token))
        while (await ctx.deps.agents.status(server)).state not in AT_REST:
            await ctx.pause(ctx.deps.settings.timing.ready_poll_s)


class RestartWorkload(Step):
    """A restart does not converge: where it may have been tried before, the world is asked first, and readiness alone is waited for."""

    name = StepName.RESTART_WORKLOAD
    deadline_s = 600.0
    effect = Effect.FENCED
    skipped_when_suspended = True

    def limit_s(self, ctx: Context) -> float:
        return _ready_limit_s(self, ctx)

    async def do(self, ctx: Context) -> None:
        server = ctx.server
        if server.ctype is ContainerType.DEV:
            await self._container(ctx)
        elif not (ctx.again and await self._restarted(ctx)):
            await self._send(ctx)
        await wait_ready(ctx)

    @staticmethod
    async def _send(ctx: Context) -> None:
        """Only a lost answer leaves open whether it was carried out: one that was refused is simply sent again."""
        try:
            await ctx.sent(ctx.deps.agents.restart(ctx.server, ctx.token))
        except AmbiguousEffect:
            ctx.again = True
            raise
        ctx.again = True

    async def _container(self, ctx: Context) -> None:
        """Where the journal's task, shutdown or start, went well and the container runs, it has been started again already."""
        server = ctx.server
        await ctx.settle()
        await ctx.own()
        running = await ctx.deps.proxmox.status(server.node, server.vmid) == "running"
        upid = ctx.row.upid if ctx.row is not None else None
        if running and upid is not None and await self._went_well(ctx, upid):
            return
        if running:
            await ctx.task(ctx.proxmox.shutdown(server.node, server.vmid, 60))
            await ctx.own()
        await ctx.task(ctx.proxmox.start(server.node, server.vmid))

    @staticmethod
    async def _went_well(ctx: Context, upid: str) -> bool:
        try:
            return (await ctx.deps.proxmox.task(upid)).ok
        except Unproven as error:  # settled, but forgotten by its node: once more does no harm, waiting for its word never ends
            ctx.say(f"how the earlier task ended is not known: {error.why}")
            return False

    async def _restarted(self, ctx: Context) -> bool:
        """Whether the workload is younger than the order's first run: the journal's own time is that of the present attempt."""
        status = await ctx.deps.agents.status(ctx.server)
        async with ctx.deps.database.read() as tx:
            age_s = (tx.now - (ctx.operation.started_at or ctx.operation.created_at)) / 1000
        return status.state in (WorkloadState.STARTING, WorkloadState.STOPPING) or (status.state is WorkloadState.RUNNING and status.uptime_s < age_s)
