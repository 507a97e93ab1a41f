"""``dns_record``: an active, ready game with its edge open whose DNS record is missing or points elsewhere. Repair: publish."""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide.remedies import mend
from flows.decide.sightings import observation_of, told_by
from flows.decide.wanted import Names, fqdn, publishable
from flows.domain import readiness
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database", "dns"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    if not isinstance(snapshot.dns, Known):
        return
    zone, names, billing = snapshot.dns.value, Names(policy), snapshot.fleet.billing
    for server in snapshot.fleet.servers.values():
        if not publishable(server, billing.get(server.customer_id)):
            continue
        wrong = names.wrong(server, zone)
        if wrong and readiness.may_publish(observation_of(snapshot, server.id), snapshot.now):
            name = fqdn(server, policy)
            yield Finding(
                check=Check.DNS_RECORD,
                subject=server.id,
                summary=f"{name}: {wrong}",
                level=1,
                action=Action.PUBLISH_DNS,
                server_id=server.id,
                host=server.node,
                sources=SOURCES | told_by(snapshot, server.id),
                evidence={"name": name, "problem": wrong},
                remedy=mend(snapshot, f"zlh restart {server.name}"),
            )


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    server = snapshot.fleet.servers.get(subject)
    if server is None or not isinstance(snapshot.dns, Known) or not publishable(server, snapshot.fleet.billing.get(server.customer_id)):
        return ""
    known = readiness.fresh(observation_of(snapshot, subject), snapshot.now)
    return "readiness unknown" if not known and Names(policy).wrong(server, snapshot.dns.value) else ""
