"""Repair of ``billing_suspended``: the edge is withdrawn, then the workload stopped gracefully."""

from __future__ import annotations

from flows.act import edge
from flows.act.repairs.base import RepairContext, RepairHandler
from flows.act.steps.base import Effect
from flows.act.steps.workload import AT_REST
from flows.domain.agent import WorkloadState
from flows.domain.finding import Action
from flows.domain.server import ContainerType, Edge, Server, ServerState
from flows.domain.sources import TaskStatus
from flows.errors import AutomationError, Busy
from flows.state import customers, leases, servers
from flows.state.intake import locked_customer

#: Tasks that end with the container down. A backup, a snapshot or a console does not: under it a suspended container runs on.
_ENDS = frozenset({"vzshutdown", "vzstop"})


def _goes_down(task: TaskStatus) -> bool:
    """``UPID:node:pid:pstart:starttime:type:id:user:``"""
    return not task.finished and bool(_ENDS.intersection(task.upid.split(":")[5:6]))


class SuspendWorkload(RepairHandler):
    """Games stop through their agent; a developer container is shut down. The customer's billing state is read again first."""

    action = Action.SUSPEND_WORKLOAD
    effect = Effect.FENCED

    async def drifted(self, ctx: RepairContext) -> bool:
        server = await ctx.server()
        async with ctx.deps.database.read() as tx:
            if not await customers.is_suspended(tx, server.customer_id):
                return False
        return await self._running(ctx, server)

    async def heal(self, ctx: RepairContext) -> bool:
        server = await self._withdrawn(ctx)
        if server is None:
            return False
        if server.ctype is ContainerType.DEV:
            config = await ctx.deps.proxmox.config(server.node, server.vmid)
            if config.lock is not None:
                raise Busy(f"container {server.vmid}", why=f"CT is locked ({config.lock})", remedy=f"pct config {server.vmid}")
            # Answers at once; the container goes down on its own time, and the next sweep looks.
            await ctx.proxmox.shutdown(server.node, server.vmid, 60)
            return True
        await edge.deregister(ctx.deps, server.name, ctx.token)
        async with ctx.deps.database.read() as tx:
            if not await customers.is_suspended(tx, server.customer_id):
                return False  # resumed a moment ago: what still runs, runs on
        await ctx.deps.agents.stop(server, ctx.token)
        return True

    @staticmethod
    async def _withdrawn(ctx: RepairContext) -> Server | None:
        """Closes the server to players while its customer is locked, as :mod:`flows.state.accounts` does. None: resumed since ``drifted``
        looked; what a resumption opened must not be closed for good."""
        known = await ctx.server()
        async with ctx.deps.database.write(epoch=ctx.epoch) as tx:
            await locked_customer(tx, known.customer_id)
            await leases.check(tx, ctx.subject, ctx.token)
            server = await servers.get(tx, known.id)
            if server is None or not await customers.is_suspended(tx, known.customer_id):
                return None
            await servers.set_edge(tx, server.id, Edge.WITHDRAWN)
            if server.state is ServerState.ACTIVE:
                await servers.set_state(tx, server.id, ServerState.SUSPENDED, "controller")
        return server

    async def _running(self, ctx: RepairContext, server: Server) -> bool:
        """A game's agent is asked first, Proxmox where it is silent: nothing runs in a container that is down."""
        if server.ctype is ContainerType.DEV:
            if not await self._up(ctx, server):
                return False
            return not any(_goes_down(task) for task in await ctx.deps.proxmox.tasks_of(server.vmid))
        try:
            state = (await ctx.deps.agents.status(server)).state
        except AutomationError:
            if not await self._up(ctx, server):
                return False
            raise
        return state not in AT_REST and state is not WorkloadState.STOPPING

    @staticmethod
    async def _up(ctx: RepairContext, server: Server) -> bool:
        return await ctx.deps.proxmox.status(server.node, server.vmid) == "running"
