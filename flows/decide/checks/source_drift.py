"""``source_drift``: more than 20 % (at least 5) of the servers drift alike in one source. One incident instead of many repairs.

The proxy gets one bulk rehydrate; DNS is held and a person paged, because a zone does not lose its records by itself. The single findings
become correlated. Servers that somebody leased or paused are left out, of the count and of the repair: they stay with whoever holds them.
Evidence: ``servers`` (ids to be registered), ``stale`` (names to be deregistered), ``checks`` (count and total of each).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flows.decide import holds
from flows.decide.checks import dns_record, dns_stale_record, proxy_registration, proxy_stale_registration
from flows.decide.remedies import mend
from flows.decide.stale import holders_of_names
from flows.decide.wanted import publishable
from flows.domain.finding import Action, BrakeScope, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.server import Server
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database"})
#: Checks whose findings drift alike, by source.
ALIKE: Mapping[str, tuple[Check, ...]] = {
    "dns": (Check.DNS_RECORD, Check.DNS_STALE_RECORD),
    "proxy": (Check.PROXY_REGISTRATION, Check.PROXY_STALE_REGISTRATION),
}


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    """From the snapshot alone; the plan, which has the single findings already, calls :func:`among`."""
    modules = (dns_record, dns_stale_record, proxy_registration, proxy_stale_registration)
    return among([f for m in modules for f in m.check(snapshot, policy)], snapshot, policy)


def among(findings: Sequence[Finding], snapshot: Snapshot, policy: Policy) -> list[Finding]:
    """The incidents that these findings amount to."""
    kinds = frozenset(kind for alike in ALIKE.values() for kind in alike)
    singles = [f for f in findings if f.check in kinds and f.confirmed]
    if len(singles) < policy.drift_min:
        return []
    held = _Held(snapshot)
    singles = [f for f in singles if not held.holds(f.server_id, f.host, f.subject)]
    return [f for source in sorted(ALIKE) if (f := _incident(source, singles, held, snapshot, policy)) is not None]


class _Held:
    """Servers and subjects that a lease or a brake of their own takes out. A brake on everything takes nothing out: it stops the incident."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._fleet, self._now = snapshot.fleet, snapshot.now
        self._brakes = [b for b in holds.in_force(snapshot.fleet, snapshot.now) if b.scope is not BrakeScope.ALL]

    def holds(self, server_id: str | None, host: str | None, subject: str | None = None) -> bool:
        if holds.lease_on(self._fleet, self._now, server_id, subject) is not None:
            return True
        return any(holds.applies(brake, self._fleet, server_id, host) for brake in self._brakes)

    def server(self, server: Server | None, subject: str | None = None) -> bool:
        return self.holds(server.id if server else None, server.node if server else None, subject)


def _incident(source: str, findings: Sequence[Finding], held: _Held, snapshot: Snapshot, policy: Policy) -> Finding | None:
    drifting: dict[Check, list[Finding]] = {}
    counts: dict[str, object] = {}
    for kind in ALIKE[source]:
        alike = [f for f in findings if f.check is kind]
        if len(alike) < policy.drift_min:
            continue
        total = _total(kind, snapshot, held)
        if len(alike) > total * policy.drift_fraction:
            drifting[kind] = alike
            counts[kind.value] = {"drifting": len(alike), "of": total}
    if not drifting:
        return None
    everything = [f for alike in drifting.values() for f in alike]
    bulk = source == "proxy"
    look = f"zlh findings --check {max(drifting, key=lambda kind: (len(drifting[kind]), kind.value)).value}"
    return Finding(
        check=Check.SOURCE_DRIFT,
        subject=f"source:{source}",
        summary=f"{source}: many entries drift alike" + ("" if bulk else "; repairs are held until a person has looked"),
        level=1 if bulk else 0,
        action=Action.REHYDRATE_PROXY if bulk else None,
        sources=frozenset({"database", source}).union(*(f.sources for f in everything)),
        evidence={
            "checks": counts,
            "servers": sorted(f.subject for f in everything if f.check in (Check.DNS_RECORD, Check.PROXY_REGISTRATION)),
            "stale": sorted(str(f.evidence["name"]) for f in everything if f.check in (Check.DNS_STALE_RECORD, Check.PROXY_STALE_REGISTRATION)),
        },
        remedy=mend(snapshot, look) if bulk else look,
    )


def _total(kind: Check, snapshot: Snapshot, held: _Held) -> int:
    """Of how many: servers that should have an entry, or entries that are there."""
    fleet = snapshot.fleet
    if kind is Check.DNS_STALE_RECORD:
        owners = snapshot.dns.value.owners if isinstance(snapshot.dns, Known) else {}
        return sum(1 for name, owner in owners.items() if not held.server(fleet.servers.get(owner), f"dns:{name}"))
    if kind is Check.PROXY_STALE_REGISTRATION:
        entries = snapshot.proxy.value.registrations if isinstance(snapshot.proxy, Known) else {}
        names = holders_of_names(fleet)
        return sum(1 for name in entries if not held.server(names.get(name), f"proxy:{name}"))
    return sum(1 for s in fleet.servers.values() if publishable(s, fleet.billing.get(s.customer_id)) and not held.server(s))


def held(incidents: Iterable[Finding]) -> Mapping[Check, Finding]:
    """Check → the incident that its single findings are part of."""
    found: dict[Check, Finding] = {}
    for incident in incidents:
        counts = incident.evidence.get("checks")
        for kind in ALIKE[incident.subject.removeprefix("source:")]:
            if isinstance(counts, dict) and kind.value in counts:
                found[kind] = incident
    return found


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    """The incident is over when fewer drift, unless servers whose readiness is unknown could make up the number."""
    source = subject.removeprefix("source:")
    if source == "dns":
        if not isinstance(snapshot.dns, Known):
            return "dns is unknown"
        unknown = [i for i in snapshot.fleet.servers if dns_record.unproven(snapshot, policy, i)]
    else:
        if not isinstance(snapshot.proxy, Known):
            return "proxy is unknown"
        unknown = [i for i in snapshot.fleet.servers if proxy_registration.unproven(snapshot, policy, i)]
    return f"readiness of {len(unknown)} servers that drift is unknown" if len(unknown) >= policy.drift_min else ""
