"""What players should find: which servers belong on the edge, and their DNS records. The checks and ``act`` ask the same questions here.

Records point to the *proxy's* public address from settings, never to a container. DNS names are written as :class:`Record` wants them:
fully qualified, lower case, without the trailing dot; so are the targets inside CNAME and SRV values.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from flows.domain.finding import Policy
from flows.domain.server import MAY_RUN, BillingState, ContainerType, Edge, Server, ServerState
from flows.domain.sources import Record, ZoneView

#: Minecraft's own port: no SRV record is needed for it.
DEFAULT_PORT = 25565
SRV_PREFIX = "_minecraft._tcp."
_ADDRESS_TYPES = frozenset({"A", "AAAA", "CNAME"})


def fqdn(server: Server, policy: Policy) -> str:
    """The name that players type."""
    return f"{server.name}.{policy.game_domain}".rstrip(".").lower()


def base_name(name: str) -> str:
    """The player's name to which a DNS name belongs: an SRV name without its service labels."""
    return name.removeprefix(SRV_PREFIX)


def wanted_records(server: Server, policy: Policy) -> tuple[Record, ...]:
    """A, AAAA or CNAME of the proxy by the kind of ``player_address``; an SRV where the port is not Minecraft's own."""
    name = fqdn(server, policy)
    rtype, value = _target(policy.player_address)
    records = [Record(name, rtype, value, policy.record_ttl_s)]
    if policy.player_port != DEFAULT_PORT:
        records.append(Record(SRV_PREFIX + name, "SRV", f"0 5 {policy.player_port} {name}", policy.record_ttl_s))
    return tuple(records)


def publishable(server: Server, billing: BillingState | None) -> bool:
    """Whether players may be sent there, readiness apart: an active game, its edge open, its customer in good standing.
    Unknown standing (None) is no permission."""
    return server.state is ServerState.ACTIVE and server.ctype is ContainerType.GAME and server.edge is Edge.OPEN and billing in MAY_RUN


def suspended(server: Server, billing: BillingState | None) -> bool:
    """Whether the customer's standing forbids it to run. Unknown standing (None) is no reason."""
    return server.state is ServerState.SUSPENDED or (billing is not None and billing not in MAY_RUN)


def wants_name(server: Server, billing: BillingState | None, *, in_operation: bool) -> bool:
    """Whether the server's DNS name is to be kept. A stopped or maintained server keeps it; a suspended one does not; while an
    operation makes or unmakes the server, the name is that operation's business."""
    if server.ctype is not ContainerType.GAME:
        return False
    if server.state in (ServerState.CREATING, ServerState.DELETING):
        return in_operation
    return server.state is ServerState.ACTIVE and not suspended(server, billing)


class Names:
    """The wanted records of many servers against one zone, without building them one by one."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._target = _target(policy.player_address)
        self._srv = policy.player_port != DEFAULT_PORT

    def wrong(self, server: Server, zone: ZoneView) -> str:
        """What is wrong with the server's records, in words; empty if nothing is."""
        name = fqdn(server, self._policy)
        present = zone.records.get(name, ())
        if len(present) == 1 and (present[0].rtype, present[0].value) == self._target:  # the usual case
            found = {self._target}
        else:
            found = {(r.rtype, _canonical(r.rtype, r.value)) for r in present if r.rtype in _ADDRESS_TYPES}
        if not found:
            return "no record"
        if found != {self._target}:
            return "points to " + ", ".join(sorted(value for _, value in found))
        if zone.owners.get(name) != server.id:
            return "our owner record is missing" if name not in zone.owners else "the owner record names another server"
        return self._wrong_srv(name, zone.records.get(SRV_PREFIX + name, ()))

    def _wrong_srv(self, name: str, present: Iterable[Record]) -> str:
        found = {_canonical("SRV", r.value) for r in present if r.rtype == "SRV"}
        if self._srv:
            want = _canonical("SRV", f"0 5 {self._policy.player_port} {name}")
            return "" if found == {want} else ("no SRV record" if not found else "the SRV record points elsewhere")
        return "an SRV record that is not wanted" if found else ""


def _target(address: str) -> tuple[str, str]:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "CNAME", _canonical("CNAME", address)
    return ("A" if ip.version == 4 else "AAAA"), str(ip)


def _canonical(rtype: str, value: str) -> str:
    """One spelling per meaning: addresses compressed, names in lower case without the trailing dot, an SRV's port and target alone."""
    value = value.strip().lower().rstrip(".")
    if rtype == "AAAA":
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            return value
    return " ".join(value.split()[-2:]) if rtype == "SRV" else value
