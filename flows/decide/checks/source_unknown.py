"""``source_unknown``: a source gave no trustworthy answer. One finding per source; the checks that read it do not run meanwhile.

Severity 1 at once, 3 from ``source_critical_sweeps`` sweeps in a row on. The agents are a
source like the others where not one of them was asked; one by one they are ``agent_offline``'s.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide.sightings import ALL_SOURCES, source_of
from flows.domain.finding import Check, Finding, Policy
from flows.domain.known import Unknown
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    for name in ALL_SOURCES:
        answer = source_of(snapshot, name)
        if not isinstance(answer, Unknown):
            continue
        before = snapshot.fleet.sources.get(name)
        sweeps = (before.misses if before else 0) + 1
        yield Finding(
            check=Check.SOURCE_UNKNOWN,
            subject=f"source:{name}",
            summary=f"{name}: no trustworthy answer",
            level=0,
            sources=SOURCES,
            evidence={"reason": answer.reason, "sweeps": sweeps},
            remedy="zlh doctor",
            severity=3 if sweeps >= policy.source_critical_sweeps else 1,
        )


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return ""
