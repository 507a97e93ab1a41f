"""The steps that end an operation, each in one transaction."""

from __future__ import annotations

from flows.act.context import Context
from flows.act.steps.base import FinalStep
from flows.domain.agent import Observation, WorkloadState
from flows.domain.event import Event, EventKind
from flows.domain.operation import OperationKind, OperationState, StepName
from flows.domain.server import ContainerType, Desired, Edge, ServerState
from flows.errors import AutomationError, Unproven
from flows.state import addresses, host_keys, observations, operations, outbox, servers, vmids
from flows.state.database import Tx

#: Seconds for proving absence: longer than the longest clone, which leaves it open while it runs.
OUTLASTS_A_CLONE_S = 900.0


class Activate(FinalStep):
    """Step 10: server ``active``, operation ``succeeded``, one alert. A suspended customer's server is finished without having started."""

    name = StepName.ACTIVATE

    async def prepare(self, ctx: Context) -> None:
        await _prove_ready(ctx)

    async def commit(self, ctx: Context, tx: Tx) -> None:
        server = ctx.server
        await servers.set_state(tx, server.id, ServerState.SUSPENDED if ctx.suspended else ServerState.ACTIVE, ctx.operation.actor)
        if not ctx.suspended:
            await servers.set_edge(tx, server.id, Edge.OPEN)
            await observations.upsert(tx, [_ready(server.id, tx.now)])
        await operations.set_state(tx, ctx.operation.id, OperationState.SUCCEEDED)
        event = Event(
            EventKind.PROVISIONING_SUCCEEDED,
            key=f"provisioned/{ctx.operation.id}",
            what=f"{server.name} is ready" if not ctx.suspended else f"{server.name} is built; its customer is suspended, so it was not started",
            where=f"ct {server.vmid} on {server.node}, {server.address}",
            done=f"{server.ctype.value} {server.flavor} {server.version}, operation {ctx.operation.id}",
            command=f"zlh servers show {server.name}",
        )
        await outbox.put(tx, event, ctx.deps.route(event, tx.now))


class Finish(FinalStep):
    """End of start, stop and restart; and of what is done to the agent, which leaves the workload as it is."""

    name = StepName.FINISH

    async def prepare(self, ctx: Context) -> None:
        if ctx.operation.kind in (OperationKind.START, OperationKind.RESTART):
            await _prove_ready(ctx)

    async def commit(self, ctx: Context, tx: Tx) -> None:
        server = ctx.server
        if ctx.operation.kind is OperationKind.STOP:
            await servers.set_edge(tx, server.id, Edge.WITHDRAWN)
            if server.ctype is ContainerType.GAME:
                await observations.upsert(tx, [_stopped(server.id, tx.now)])
        elif ctx.operation.kind in (OperationKind.START, OperationKind.RESTART) and not ctx.suspended:
            if server.desired is Desired.RUNNING:
                await servers.set_edge(tx, server.id, Edge.OPEN)
            await observations.upsert(tx, [_ready(server.id, tx.now)])
        await operations.set_state(tx, ctx.operation.id, OperationState.SUCCEEDED)


class Release(FinalStep):
    """End of a deletion: VMID and address go to quarantine, the name is free at once."""

    name = StepName.RELEASE
    deadline_s = OUTLASTS_A_CLONE_S

    async def prepare(self, ctx: Context) -> None:
        if not await ctx.deps.proxmox.proven_absent(ctx.server.vmid, template_vmid=ctx.server.template_vmid):
            raise Unproven(f"container {ctx.server.vmid}", why="it exists: nothing is released")

    async def commit(self, ctx: Context, tx: Tx) -> None:
        await release(ctx, tx)
        await servers.mark_deleted(tx, ctx.server.id, ctx.operation.actor)
        await operations.set_state(tx, ctx.operation.id, OperationState.SUCCEEDED)


async def release(ctx: Context, tx: Tx) -> None:
    """Gives back what a server held. The container must be proven absent before."""
    until = tx.now + int(ctx.deps.settings.vmid.quarantine_s * 1000)
    await vmids.quarantine(tx, ctx.server.vmid, until, server_id=ctx.server.id)
    await addresses.quarantine(tx, ctx.server.address, until, server_id=ctx.server.id)
    await host_keys.forget(tx, ctx.server.id)


async def _prove_ready(ctx: Context) -> None:
    if ctx.suspended:
        return
    try:
        ready, reason = await ctx.deps.agents.ready(ctx.server)
    except AutomationError as error:
        raise Unproven(f"readiness of {ctx.server.name}", why=str(error)) from error
    if not ready:
        raise Unproven(f"readiness of {ctx.server.name}", why=reason)


def _ready(server_id: str, now: int) -> Observation:
    return Observation(server_id, now, reachable=True, ready=True, state=WorkloadState.RUNNING)


def _stopped(server_id: str, now: int) -> Observation:
    return Observation(server_id, now, reachable=True, ready=False, state=WorkloadState.STOPPED)
