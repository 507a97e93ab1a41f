"""Repairs of what players see: DNS and the proxy."""

from __future__ import annotations

from flows.act import edge
from flows.act.policy import policy_of
from flows.act.repairs.base import RepairContext, RepairHandler
from flows.act.steps.base import Effect
from flows.decide.wanted import fqdn
from flows.domain.finding import Action
from flows.domain.server import Edge, Server, ServerState
from flows.errors import Conflict
from flows.state import servers


async def _wants_edge(ctx: RepairContext) -> Server | None:
    """The server, if it still is to be published; None if not."""
    try:
        server = await ctx.server()
    except Conflict as error:
        if type(error) is not Conflict:
            raise
        return None
    return server if server.state is ServerState.ACTIVE and server.edge is Edge.OPEN else None


class PublishDns(RepairHandler):
    action = Action.PUBLISH_DNS
    effect = Effect.PREREQUISITE

    async def drifted(self, ctx: RepairContext) -> bool:
        server = await _wants_edge(ctx)
        return server is not None and not await edge.dns_is_right(ctx.deps, server)

    async def heal(self, ctx: RepairContext) -> None:
        await edge.publish_dns(ctx.deps, await ctx.server())


class WithdrawDns(RepairHandler):
    """Only a name that carries our owner record, and that no server of ours wants at this moment."""

    action = Action.WITHDRAW_DNS
    effect = Effect.PREREQUISITE

    async def drifted(self, ctx: RepairContext) -> bool:
        name = _name(ctx, "dns:")
        zone = await ctx.deps.dns.zone()
        if name not in zone.owners:
            return False
        async with ctx.deps.database.read() as tx:
            wanted = {fqdn(s, policy_of(ctx.deps.settings)) for s in await servers.list_(tx)}
        return name not in wanted

    async def heal(self, ctx: RepairContext) -> None:
        name = _name(ctx, "dns:")
        owner = (await ctx.deps.dns.zone()).owners.get(name)
        if owner is not None:
            await edge.withdraw_dns(ctx.deps, name, owner)


class RegisterProxy(RepairHandler):
    action = Action.REGISTER_PROXY
    effect = Effect.FENCED

    async def drifted(self, ctx: RepairContext) -> bool:
        server = await _wants_edge(ctx)
        return server is not None and not await edge.proxy_is_right(ctx.deps, server)

    async def heal(self, ctx: RepairContext) -> None:
        await edge.register(ctx.deps, await ctx.server(), ctx.token)


class DeregisterProxy(RepairHandler):
    """A registration of a server that is proven not ready, suspended, or unknown to the database."""

    action = Action.DEREGISTER_PROXY
    effect = Effect.FENCED

    async def drifted(self, ctx: RepairContext) -> bool:
        name = await self._backend(ctx)
        if name not in (await ctx.deps.proxy.view()).registrations:
            return False
        async with ctx.deps.database.read() as tx:
            server = await servers.by_name(tx, name)
        if server is None or server.edge is Edge.WITHDRAWN or server.state is not ServerState.ACTIVE:
            return True
        if not await edge.proxy_is_right(ctx.deps, server):
            return True
        ready, _ = await ctx.deps.agents.ready(server)
        return not ready

    async def heal(self, ctx: RepairContext) -> None:
        await edge.deregister(ctx.deps, await self._backend(ctx), ctx.token)

    @staticmethod
    async def _backend(ctx: RepairContext) -> str:
        name = ctx.finding.evidence.get("name")
        return str(name) if name else _name(ctx, "proxy:")


class RehydrateProxy(RepairHandler):
    """Many registrations drift alike: the proxy pulls the whole list again, instead of many repairs."""

    action = Action.REHYDRATE_PROXY
    effect = Effect.CONVERGENT
    limit_s = 15.0

    async def drifted(self, ctx: RepairContext) -> bool:
        return bool(await self._missing(ctx))

    async def heal(self, ctx: RepairContext) -> None:
        await ctx.deps.proxy.rehydrate()

    @staticmethod
    async def _missing(ctx: RepairContext) -> set[str]:
        registered = (await ctx.deps.proxy.view()).registrations
        async with ctx.deps.database.read() as tx:
            active = {s.id: s for s in await servers.list_(tx, state=ServerState.ACTIVE)}
        wanted = ctx.finding.evidence.get("servers", ())
        ids = [str(i) for i in wanted] if isinstance(wanted, list | tuple) else []
        return {active[i].name for i in ids if i in active and active[i].edge is Edge.OPEN and active[i].name not in registered}


def _name(ctx: RepairContext, prefix: str) -> str:
    return ctx.finding.subject.removeprefix(prefix)
