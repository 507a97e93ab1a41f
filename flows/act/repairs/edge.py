"""Repairs of what players see: DNS and the proxy."""

from __future__ import annotations

from collections.abc import Mapping

from flows.act import edge
from flows.act.policy import policy_of
from flows.act.repairs.base import RepairContext, RepairHandler
from flows.act.steps.base import Effect
from flows.decide.stale import matches
from flows.decide.wanted import fqdn, publishable, wants_name
from flows.domain.finding import Action, Outcome
from flows.domain.server import BillingState, Server, ServerState
from flows.domain.sources import Registration
from flows.errors import AutomationError, Conflict, NotFound
from flows.state import customers, operations, rehydrate, repairs, servers


async def _wants_edge(ctx: RepairContext) -> Server | None:
    """The server, if it still is to be published; None if not."""
    try:
        server = await ctx.server()
    except Conflict as error:
        if type(error) is not Conflict:
            raise
        return None
    return server if publishable(server, await _billing(ctx, server)) else None


async def _billing(ctx: RepairContext, server: Server) -> BillingState | None:
    async with ctx.deps.database.read() as tx:
        customer = await customers.get(tx, server.customer_id)
    return customer.billing if customer is not None else None


class PublishDns(RepairHandler):
    action = Action.PUBLISH_DNS
    effect = Effect.PREREQUISITE

    async def drifted(self, ctx: RepairContext) -> bool:
        server = await _wants_edge(ctx)
        return server is not None and not await edge.dns_is_right(ctx.deps, server)

    async def heal(self, ctx: RepairContext) -> bool:
        return await edge.publish_dns(ctx.deps, await ctx.server())


class WithdrawDns(RepairHandler):
    """Only a name that carries our owner record, and that no server of ours wants at this moment."""

    action = Action.WITHDRAW_DNS
    effect = Effect.PREREQUISITE

    async def drifted(self, ctx: RepairContext) -> bool:
        name = _name(ctx, "dns:")
        zone = await ctx.deps.dns.zone()
        if name not in zone.owners:
            return False
        policy = policy_of(ctx.deps.settings)
        async with ctx.deps.database.read() as tx:
            holder = next((s for s in await servers.list_(tx) if fqdn(s, policy) == name), None)
            in_operation = holder is not None and await operations.live_of(tx, holder.id) is not None
        return holder is None or not wants_name(holder, await _billing(ctx, holder), in_operation=in_operation)

    async def heal(self, ctx: RepairContext) -> bool:
        name = _name(ctx, "dns:")
        owner = (await ctx.deps.dns.zone()).owners.get(name)
        return owner is not None and await edge.withdraw_dns(ctx.deps, name, owner)


class RegisterProxy(RepairHandler):
    action = Action.REGISTER_PROXY
    effect = Effect.FENCED

    async def drifted(self, ctx: RepairContext) -> bool:
        server = await _wants_edge(ctx)
        return server is not None and not await edge.proxy_is_right(ctx.deps, server)

    async def heal(self, ctx: RepairContext) -> bool:
        server = await ctx.server()
        if await self._stop_may_arrive(ctx) and (await ctx.deps.agents.ready(server))[0]:
            await ctx.deps.agents.start(server, ctx.token)  # what runs, runs on; the agent refuses older orders from now on
        return await edge.register(ctx.deps, server, ctx.token)

    @staticmethod
    async def _stop_may_arrive(ctx: RepairContext) -> bool:
        """Whether the last suspension never came to an end that anybody knows: whoever stood still in it may still send its stop, and since
        the customer was resumed nobody has spoken to the agent under a newer lease."""
        assert ctx.finding.server_id is not None
        async with ctx.deps.database.read() as tx:
            last = await repairs.last(tx, ctx.finding.server_id, Action.SUSPEND_WORKLOAD)
        return last is not None and last.outcome in (None, Outcome.UNVERIFIED)


class DeregisterProxy(RepairHandler):
    """A registration of a server that is proven not ready, suspended, or unknown to the database. The agent is asked first: while Proxmox is
    unreachable an unready backend must not stay registered."""

    action = Action.DEREGISTER_PROXY
    effect = Effect.FENCED

    async def drifted(self, ctx: RepairContext) -> bool:
        name = await self._backend(ctx)
        if name not in (await ctx.deps.proxy.view()).registrations:
            return False
        async with ctx.deps.database.read() as tx:
            server = await servers.by_name(tx, name)
        if server is None or not publishable(server, await _billing(ctx, server)):
            return True
        if not await edge.proxy_is_right(ctx.deps, server):
            return True
        try:
            ready, _ = await ctx.deps.agents.ready(server)
        except AutomationError:
            # A stopped container has no agent to ask, and is proof enough, as is one that is gone; the silence of a running one proves nothing.
            if await _down(ctx, server):
                return True
            raise
        return not ready

    async def heal(self, ctx: RepairContext) -> bool:
        return await edge.deregister(ctx.deps, await self._backend(ctx), ctx.token)

    @staticmethod
    async def _backend(ctx: RepairContext) -> str:
        name = ctx.finding.evidence.get("name")
        return str(name) if name else _name(ctx, "proxy:")


async def _down(ctx: RepairContext, server: Server) -> bool:
    try:
        return await ctx.deps.proxmox.status(server.node, server.vmid) == "stopped"
    except NotFound:
        return await ctx.deps.proxmox.proven_absent(server.vmid, template_vmid=server.template_vmid)


class RehydrateProxy(RepairHandler):
    """Many registrations drift alike: the proxy pulls the whole list again, instead of many repairs. Servers under a lease or a pause stay as
    they are, and do not count as drifting."""

    action = Action.REHYDRATE_PROXY
    effect = Effect.CONVERGENT

    async def drifted(self, ctx: RepairContext) -> bool:
        registered = (await ctx.deps.proxy.view()).registrations
        wanted, stale = _words(ctx, "servers"), _words(ctx, "stale")
        async with ctx.deps.database.read() as tx:
            active = {s.id: s for s in await servers.list_(tx, state=ServerState.ACTIVE)}
            left = await rehydrate.left_alone(tx)
        missing = [active[i] for i in wanted if i in active and active[i].name not in left and not _registered(registered, active[i])]
        return bool(missing) or any(name in registered and name not in left for name in stale)

    async def heal(self, ctx: RepairContext) -> bool:
        async with ctx.deps.database.read() as tx:
            left = await rehydrate.left_alone(tx)
        await ctx.deps.proxy.rehydrate(left)
        return True


def _registered(registered: Mapping[str, Registration], server: Server) -> bool:
    found = registered.get(server.name)
    return found is not None and matches(found, server)


def _words(ctx: RepairContext, key: str) -> list[str]:
    value = ctx.finding.evidence.get(key, ())
    return [str(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else []


def _name(ctx: RepairContext, prefix: str) -> str:
    return ctx.finding.subject.removeprefix(prefix)
