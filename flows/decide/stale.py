"""Entries of the edge that should not be there: registrations and DNS names that no server of ours stands for.

Read by the two stale checks and by :mod:`flows.decide.sightings`, which counts the ones that need confirmation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flows.decide.wanted import base_name, fqdn, suspended, wants_name
from flows.domain.finding import Policy
from flows.domain.known import Known
from flows.domain.operation import LIVE_STATES
from flows.domain.server import ContainerType, Edge, Server, ServerState
from flows.domain.snapshot import Fleet, Snapshot
from flows.domain.sources import Registration

_IN_THE_MAKING = (ServerState.CREATING, ServerState.DELETING)


@dataclass(frozen=True, slots=True)
class StaleEntry:
    """``subject`` is ``proxy:<name>`` or ``dns:<name>``. ``server`` is the known server it belongs to, if any. An entry that only the
    database's silence condemns needs sightings in several sweeps; one that a row of the database condemns does not."""

    subject: str
    name: str
    why: str
    server: Server | None = None
    needs_sightings: bool = False


def servers_in_operation(fleet: Fleet) -> frozenset[str]:
    """Ids of servers that a live operation holds."""
    return frozenset(o.server_id for o in fleet.operations.values() if o.state in LIVE_STATES)


def holders_of_names(fleet: Fleet) -> dict[str, Server]:
    """Live servers by name. A failed server gave its name back."""
    return {s.name: s for s in fleet.servers.values() if s.state is not ServerState.FAILED}


def registrations(snapshot: Snapshot) -> Iterator[StaleEntry]:
    """Registrations that the database alone condemns; readiness is the check's own matter. None while the proxy is unknown."""
    if not isinstance(snapshot.proxy, Known):
        return
    fleet, names, busy = snapshot.fleet, holders_of_names(snapshot.fleet), servers_in_operation(snapshot.fleet)
    for name, registration in snapshot.proxy.value.registrations.items():
        server = names.get(name)
        if server is None:
            yield StaleEntry(f"proxy:{name}", name, "no server of ours has this name", needs_sightings=True)
            continue
        why = _condemned(server, fleet, in_operation=server.id in busy)
        if why:
            yield StaleEntry(f"proxy:{name}", name, why, server)
        elif not matches(registration, server) and server.state is ServerState.ACTIVE:
            why = f"{registration.address}:{registration.port} is not this server's address"
            yield StaleEntry(f"proxy:{name}", name, why, server, needs_sightings=True)


def matches(registration: Registration, server: Server) -> bool:
    """Whether the proxy would send players to the server's own address."""
    return registration.address == server.address and registration.port == server.game_port


def _condemned(server: Server, fleet: Fleet, *, in_operation: bool) -> str:
    if server.ctype is not ContainerType.GAME:
        return "a developer container is not published"
    if server.state in _IN_THE_MAKING:
        return "" if in_operation else f"the server is {server.state.value} and no operation carries it"
    if suspended(server, fleet.billing.get(server.customer_id)):
        return "its customer is suspended"
    return "its edge is withdrawn" if server.edge is Edge.WITHDRAWN else ""


def names(snapshot: Snapshot, policy: Policy) -> Iterator[StaleEntry]:
    """DNS names that our owner record claims and no server of ours wants. None while the zone is unknown."""
    if not isinstance(snapshot.dns, Known):
        return
    fleet, busy = snapshot.fleet, servers_in_operation(snapshot.fleet)
    wanted = {fqdn(s, policy) for s in fleet.servers.values() if wants_name(s, fleet.billing.get(s.customer_id), in_operation=s.id in busy)}
    claimed: dict[str, str] = {}
    for name, owner in sorted(snapshot.dns.value.owners.items()):
        claimed.setdefault(base_name(name), owner)
    for name, owner in claimed.items():
        if name in wanted:
            continue
        server = fleet.servers.get(owner)
        if server is None:
            yield StaleEntry(f"dns:{name}", name, "its owner is unknown to the database", needs_sightings=True)
        elif suspended(server, fleet.billing.get(server.customer_id)) and server.state is not ServerState.FAILED:
            yield StaleEntry(f"dns:{name}", name, "its customer is suspended", server)
        else:
            yield StaleEntry(f"dns:{name}", name, f"its owner is {server.state.value} and wants no such name", server)
