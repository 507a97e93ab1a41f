"""``dns_stale_record``: a name that our TXT owner record claims and no server of ours wants. Repair: withdraw.

Names without an owner record of ours are other people's and never looked at. An owner that the database does not know is confirmed by
``confirm_sweeps`` sightings: a database restored a moment ago may be older than the world.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide import stale
from flows.decide.remedies import mend
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database", "dns"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    for entry in stale.names(snapshot, policy):
        sighted = snapshot.fleet.sightings.get(entry.subject, 0) + 1
        yield Finding(
            check=Check.DNS_STALE_RECORD,
            subject=entry.subject,
            summary=f"{entry.name}: published, but {entry.why}",
            level=1,
            action=Action.WITHDRAW_DNS,
            server_id=entry.server.id if entry.server else None,
            host=entry.server.node if entry.server else None,
            confirmed=not entry.needs_sightings or sighted >= policy.confirm_sweeps,
            sources=SOURCES,
            evidence={"name": entry.name, "why": entry.why},
            remedy=mend(snapshot, f"zlh explain {entry.server.name}" if entry.server else "zlh findings --check dns_stale_record"),
        )


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return ""
