"""Step 1, ``create_container``: a clone that is ours, or the honest statement that the VMID was somebody else's."""

from __future__ import annotations

import time
from enum import StrEnum

from flows.act import ownership
from flows.act.context import Context
from flows.act.steps import destroy
from flows.act.steps.base import Effect, Step
from flows.domain.operation import StepName
from flows.domain.ports import CloneSpec
from flows.errors import AmbiguousEffect, Busy, Conflict, Fenced, NotFound, TaskFailed, Unproven
from flows.state import servers, vmids

#: Clocks of the node and the database may differ by this much, seconds.
SKEW_S = 120


class Found(StrEnum):
    OURS = "ours"
    HALF = "half"  # locked by a clone that no longer runs
    FOREIGN = "foreign"
    NOTHING = "nothing"


async def find(ctx: Context) -> Found:
    """What holds our VMID. Raises Unproven while a clone runs or the answer is unclear, Busy under another lock."""
    server, proxmox = ctx.server, ctx.deps.proxmox
    try:
        config = await proxmox.config(server.node, server.vmid)
    except NotFound:
        if await proxmox.proven_absent(server.vmid, template_vmid=server.template_vmid):
            if time.monotonic() < ctx.unsettled_until:
                raise Unproven(f"container {server.vmid}", why="an order whose answer was lost may still arrive") from None
            return Found.NOTHING
        return await _elsewhere(ctx)
    marked = ownership.made_by(config, ctx.operation.id)
    if config.lock == "create":
        clones = await proxmox.clone_tasks(server.node, server.template_vmid, ctx.operation.created_at // 1000 - SKEW_S)
        if any(running for _, running in clones):
            raise Unproven(f"container {server.vmid}", why="a clone of its template is still running")
        return Found.HALF if marked or clones else Found.FOREIGN
    if not marked:
        return Found.FOREIGN
    if config.lock is not None:
        raise Busy(f"container {server.vmid}", why=f"CT is locked ({config.lock})")
    return Found.OURS


async def _elsewhere(ctx: Context) -> Found:
    """It exists, but not as a container of our node: another's only after its marks were read. Raises Conflict where it is ours."""
    server, proxmox = ctx.server, ctx.deps.proxmox
    what = f"container {server.vmid}"
    place = await proxmox.where(server.vmid)
    if place is None:
        raise Unproven(what, why="its VMID is in use, but the cluster lists no guest with it")
    kind, node = place
    if kind != "lxc":
        return Found.FOREIGN
    try:
        config = await proxmox.config(node, server.vmid)
    except NotFound as error:
        raise Unproven(what, why=f"it has just left node {node}") from error
    if not ownership.ours(config, server, ctx.operation.id):
        return Found.FOREIGN
    if node == server.node:
        raise Unproven(what, why=f"it has just come to node {node}")
    raise Conflict(
        what,
        why=f"it is ours, but it was migrated to node {node} in the middle of its creation",
        remedy=f"bring it back: pct migrate {server.vmid} {server.node} --restart",
    )


class CreateContainer(Step):
    """Clone with a description that names the operation: a clone cannot set tags and may inherit the template's."""

    name = StepName.CREATE_CONTAINER
    deadline_s = 600.0
    effect = Effect.LEASED

    async def already_done(self, ctx: Context) -> bool:
        await ctx.settle()
        return await find(ctx) is Found.OURS

    async def do(self, ctx: Context) -> None:
        while True:
            found = await find(ctx)
            if found is Found.OURS:
                return
            if found is Found.HALF:
                ctx.say(f"a clone died under its lock: destroying half a container {ctx.server.vmid}")
                await destroy.destroy(ctx, ctx.server, half=True)
            elif found is Found.FOREIGN:
                await self._another_vmid(ctx)
            else:
                await self._clone(ctx)

    async def _clone(self, ctx: Context) -> None:
        server = ctx.server
        spec = CloneSpec(
            node=server.node,
            template_vmid=server.template_vmid,
            vmid=server.vmid,
            storage=server.storage,
            hostname=server.hostname,
            description=ownership.operation_mark(ctx.operation.id),
        )
        # The queue's limit lets one creation clone at a time, but a run that was killed leaves its clone running. A task names its source
        # alone, so any clone of ours on the node counts for the storage.
        if running := await ctx.deps.proxmox.cloning(server.node):
            raise Busy(f"storage {server.storage} on {server.node}", why=f"another clone is running: {running[0]}")
        ctx.say(f"cloning template {server.template_vmid} to {server.vmid} on {server.node}")
        try:
            await ctx.task(ctx.proxmox.clone(spec))
        except AmbiguousEffect:
            # The next look tells: ours, half a clone, or nothing.
            ctx.say("the answer to the clone was lost; looking what came of it")
            await ctx.pause(ctx.deps.settings.timing.ready_poll_s)
        except Fenced:
            raise
        except (TaskFailed, Conflict) as error:  # Conflict: the VMID was taken after the look
            if await find(ctx) in (Found.NOTHING, Found.HALF):
                raise
            ctx.say(f"the clone reported {error.why}, but a container is there")

    async def _another_vmid(self, ctx: Context) -> None:
        old, settings = ctx.server.vmid, ctx.deps.settings.vmid
        async with ctx.deps.database.write() as tx:
            await ctx.check(tx)
            await vmids.burn(
                tx,
                old,
                f"taken by a container that is not ours, seen by operation {ctx.operation.id}",
                actor=ctx.operation.actor,
                server_id=ctx.server.id,
            )
            new = await vmids.reserve(tx, ctx.server.id, settings.first, settings.last)
            await servers.set_vmid(tx, ctx.server.id, new)
        ctx.say(f"VMID {old} belongs to somebody else: burnt; reserved {new}")
        await ctx.refresh()

    async def undo(self, ctx: Context) -> None:
        await ctx.settle()
        found = await find(ctx)
        if found in (Found.OURS, Found.HALF):
            await destroy.destroy(ctx, ctx.server, half=found is Found.HALF)
