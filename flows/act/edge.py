"""Publishing and withdrawing a game server, for steps and repairs alike. Each says whether anything had to change."""

from __future__ import annotations

from collections.abc import Awaitable

from flows.act.deps import Deps
from flows.act.policy import policy_of
from flows.act.tasks import longest_call_s, seen_through
from flows.decide.wanted import Names, fqdn, wanted_records
from flows.domain.server import Server
from flows.domain.sources import Registration
from flows.errors import AmbiguousEffect, Conflict, Unproven


async def dns_is_right(deps: Deps, server: Server) -> bool:
    """Whether the name's records are the wanted ones and carry our owner record: the sweep's own question to the same zone."""
    return not Names(policy_of(deps.settings)).wrong(server, await deps.dns.zone())


async def publish_dns(deps: Deps, server: Server) -> bool:
    """Convergent: a prerequisite on the value seen keeps a late call from undoing somebody newer's."""
    if await dns_is_right(deps, server):
        return False
    policy = policy_of(deps.settings)
    name = fqdn(server, policy)
    for last in (False, True):
        seen = await deps.dns.records(name)
        try:
            await _sent(deps, deps.dns.publish(name, wanted_records(server, policy), server.id, seen))
            return True
        except (Conflict, AmbiguousEffect):
            if await dns_is_right(deps, server):
                return True
            if last:
                raise
    return True


async def withdraw_dns(deps: Deps, name: str, owner: str) -> bool:
    """Removes a name that carries our owner record; a name that does not is left alone."""
    for last in (False, True):
        zone = await deps.dns.zone()
        if zone.owners.get(name) != owner:
            return False
        try:
            await _sent(deps, deps.dns.withdraw(name, owner, zone.records.get(name, ())))
            return True
        except (Conflict, AmbiguousEffect):
            if last:
                raise
    return True


async def proxy_is_right(deps: Deps, server: Server) -> bool:
    view = await deps.proxy.view()
    return view.registrations.get(server.name) == Registration(server.name, server.address, server.game_port)


async def register(deps: Deps, server: Server, token: int) -> bool:
    """Registers a backend that is ready at this moment. Raises Unproven when it is not: an unready backend is never registered. Always sent,
    registered or not: it raises the bridge's fence for the name, so that a deregistration still on its way from an older holder is refused.
    Whether it was missing or wrong."""
    right = await proxy_is_right(deps, server)
    ready, reason = await deps.agents.ready(server)
    if not ready:
        raise Unproven(f"registration of {server.name}", why=f"it is not ready: {reason}")
    await _sent(deps, deps.proxy.register(server.name, server.address, server.game_port, token))
    return not right


async def deregister(deps: Deps, name: str, token: int) -> bool:
    """Always sent, listed or not: it raises the bridge's fence for the name, so that a registration still on its way from an older holder
    is refused. Whether the name was listed."""
    listed = name in (await deps.proxy.view()).registrations
    await _sent(deps, deps.proxy.deregister(name, token))
    return listed


async def _sent(deps: Deps, call: Awaitable[None]) -> None:
    await seen_through(call, longest_call_s(deps.settings))
