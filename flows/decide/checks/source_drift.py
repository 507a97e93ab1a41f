"""``source_drift``: more than 20 % (at least 5) of the servers drift alike in one source. One incident instead of many repairs.

The proxy gets one bulk rehydrate; DNS is held and a person paged, because a zone does not lose its records by itself. The single findings
become correlated. Evidence: ``servers`` (ids to be registered), ``stale`` (names to be deregistered), ``checks`` (count and total of each).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flows.decide.checks import dns_record, dns_stale_record, proxy_registration, proxy_stale_registration
from flows.decide.wanted import publishable
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
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
    return [f for source in sorted(ALIKE) if (f := _incident(source, findings, snapshot, policy)) is not None]


def _incident(source: str, findings: Sequence[Finding], snapshot: Snapshot, policy: Policy) -> Finding | None:
    drifting: dict[Check, list[Finding]] = {}
    counts: dict[str, object] = {}
    for kind in ALIKE[source]:
        alike = [f for f in findings if f.check is kind and f.confirmed]
        if len(alike) < policy.drift_min:
            continue
        total = _total(kind, snapshot)
        if len(alike) > total * policy.drift_fraction:
            drifting[kind] = alike
            counts[kind.value] = {"drifting": len(alike), "of": total}
    if not drifting:
        return None
    everything = [f for alike in drifting.values() for f in alike]
    bulk = source == "proxy"
    return Finding(
        check=Check.SOURCE_DRIFT,
        subject=f"source:{source}",
        summary=f"{source}: many entries drift alike" + ("" if bulk else "; repairs are held until a person has looked"),
        level=1 if bulk else 0,
        action=Action.REHYDRATE_PROXY if bulk else None,
        sources=frozenset({"database", "agents", source}),
        evidence={
            "checks": counts,
            "servers": sorted(f.subject for f in everything if f.check in (Check.DNS_RECORD, Check.PROXY_REGISTRATION)),
            "stale": sorted(str(f.evidence["name"]) for f in everything if f.check in (Check.DNS_STALE_RECORD, Check.PROXY_STALE_REGISTRATION)),
        },
        remedy="zlh findings" if bulk else "zlh findings --check dns_record",
    )


def _total(kind: Check, snapshot: Snapshot) -> int:
    """Of how many: servers that should have an entry, or entries that are there."""
    if kind is Check.DNS_STALE_RECORD:
        return len(snapshot.dns.value.owners) if isinstance(snapshot.dns, Known) else 0
    if kind is Check.PROXY_STALE_REGISTRATION:
        return len(snapshot.proxy.value.registrations) if isinstance(snapshot.proxy, Known) else 0
    billing = snapshot.fleet.billing
    return sum(1 for s in snapshot.fleet.servers.values() if publishable(s, billing.get(s.customer_id)))


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
