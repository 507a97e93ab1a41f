"""``duplicate_vmid``: two records, or two guests of the cluster, with one VMID. Reported: nobody but a person knows which is right.

Two guests are confirmed by ``confirm_sweeps`` sightings: a migration may show one twice for a moment.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide import vmids
from flows.domain.finding import Check, Finding, Policy
from flows.domain.known import Unknown
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    recorded, guests = vmids.shared_by_records(snapshot), vmids.shared_by_guests(snapshot)
    for vmid in sorted({*recorded, *guests}):
        subject = f"vmid:{vmid}"
        names = recorded.get(vmid, [])
        sighted = snapshot.fleet.sightings.get(subject, 0) + 1
        yield Finding(
            check=Check.DUPLICATE_VMID,
            subject=subject,
            summary=f"VMID {vmid} belongs to {' and '.join(names)}" if names else f"VMID {vmid} belongs to two guests of the cluster",
            level=0,
            confirmed=bool(names) or sighted >= policy.confirm_sweeps,
            sources=frozenset({"database"} if names else {"database", "proxmox"}),
            evidence={"vmid": vmid, "servers": names},
            remedy=f"pct config {vmid}",
        )


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return f"proxmox is unknown: {snapshot.proxmox.reason}" if isinstance(snapshot.proxmox, Unknown) else ""
