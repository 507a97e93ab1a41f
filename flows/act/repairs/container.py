"""Repair of ``container_orphaned``: exactly the container that was approved is destroyed, and proven gone.

Proxmox knows no fencing, and a destruction must never meet another's container. So before anything is done its number is kept away from new
servers (for as long as a late call could still arrive, and longer), and right before each order the container, the record and the lease are
read again: the same marks, no record, no task, no lock. One that runs is stopped first. It has no server, so it can be no operation: what
does not end within the limit is looked at by the next sweep, which asks anew where it is still there.
"""

from __future__ import annotations

from flows.act.repairs.base import RepairContext, RepairHandler
from flows.act.steps.base import Effect
from flows.decide import vmids as numbers
from flows.domain.finding import Action
from flows.domain.server import ServerState
from flows.domain.sources import HOLD_TAG, OUR_TAG, ContainerConfig
from flows.errors import Busy, Conflict, NotFound
from flows.state import leases, servers, vmids


class DestroyContainer(RepairHandler):
    action = Action.DESTROY_CONTAINER
    effect = Effect.LEASED

    async def drifted(self, ctx: RepairContext) -> bool:
        """Gone, recorded, no longer tagged as ours, or held by a person: nothing to do. One on another node is not the one that was approved."""
        vmid, node = _place(ctx)
        if await _recorded(ctx):
            return False
        try:
            config = await ctx.deps.proxmox.config(node, vmid)
        except NotFound:
            if await ctx.deps.proxmox.proven_absent(vmid):
                return False
            raise Conflict(f"container {vmid}", why=f"it is not on {node} any more", remedy="the next sweep looks again") from None
        return OUR_TAG in config.tags and HOLD_TAG not in config.tags

    async def heal(self, ctx: RepairContext) -> bool:
        vmid, node = _place(ctx)
        async with ctx.deps.database.write(epoch=ctx.epoch) as tx:
            await leases.check(tx, ctx.subject, ctx.token)
            await vmids.keep_away(tx, vmid, tx.now + int(ctx.deps.settings.vmid.quarantine_s * 1000))
        if await self._same(ctx) == "running":
            await self._task(ctx, await ctx.proxmox.stop(node, vmid))
            await self._same(ctx)
        await self._task(ctx, await ctx.proxmox.destroy(node, vmid))
        return True

    async def _same(self, ctx: RepairContext) -> str:
        """Its state, after everything that the approval was for has been read again. Raises Conflict, Busy, Fenced, NotFound."""
        vmid, node = _place(ctx)
        config, present = await ctx.deps.proxmox.config(node, vmid), await ctx.deps.proxmox.status(node, vmid)
        if dict(numbers.marks(vmid, node, _name(config), config.tags)) != dict(ctx.finding.evidence) or OUR_TAG not in config.tags:
            raise Conflict(f"container {vmid}", why="it is not as it was approved", remedy="the next sweep asks anew")
        if config.lock is not None:
            raise Busy(f"container {vmid}", why=f"CT is locked ({config.lock})")
        if await ctx.deps.proxmox.tasks_of(vmid):
            raise Busy(f"container {vmid}", why="a task of it runs")
        if await _recorded(ctx):
            raise Conflict(f"container {vmid}", why="a server has its number now: it is not destroyed")
        return present

    @staticmethod
    async def _task(ctx: RepairContext, upid: str | None) -> None:
        if upid is not None:
            await ctx.deps.proxmox.wait(upid, DestroyContainer.limit_s)


async def _recorded(ctx: RepairContext) -> bool:
    vmid, _ = _place(ctx)
    async with ctx.deps.database.read() as tx:
        await leases.held(tx, ctx.subject, ctx.token)
        return any(s.vmid == vmid and s.state not in (ServerState.FAILED, ServerState.DELETED) for s in await servers.list_(tx))


def _place(ctx: RepairContext) -> tuple[int, str]:
    vmid, node = ctx.finding.evidence["vmid"], ctx.finding.evidence["node"]
    assert isinstance(vmid, int) and isinstance(node, str)
    return vmid, node


def _name(config: ContainerConfig) -> str:
    return str(config.raw.get("hostname") or "")[:255]
