"""``container_orphaned``: a container carries our tag, and no record has its number. Level 3: destroy, by approval alone.

Confirmed by ``confirm_sweeps`` sightings: Proxmox answers before the database does, and a deletion may end in between. While a task of that
number runs, or the container is locked or its state unknown, nothing is asked. The evidence is what an approval is for. One that a person
tagged ``zlh-hold`` is left to that person, an approval from before included.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide import vmids
from flows.decide.remedies import mend
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.snapshot import Snapshot
from flows.domain.sources import HOLD_TAG, Container

SOURCES = frozenset({"database", "proxmox"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    for container in vmids.orphans(snapshot):
        if HOLD_TAG in container.tags:
            continue
        subject = vmids.subject_of(container.vmid)
        busy = _busy(snapshot, container)
        sighted = snapshot.fleet.sightings.get(subject, 0) + 1
        evidence = dict(vmids.marks(container.vmid, container.node, container.name, container.tags))
        yield Finding(
            check=Check.CONTAINER_ORPHANED,
            subject=subject,
            summary=f"container {container.vmid} ({container.name or 'no name'}, {container.status}) carries our tag and belongs to no server",
            level=3,
            action=Action.DESTROY_CONTAINER,
            host=container.node,
            confirmed=not busy and sighted >= policy.confirm_sweeps,
            sources=SOURCES,
            evidence=evidence | ({"waits_for": busy} if busy else {}),
            remedy=mend(snapshot, f"pct config {container.vmid}", level=3),
        )


def _busy(snapshot: Snapshot, container: Container) -> str:
    assert isinstance(snapshot.proxmox, Known)  # there would be no container
    running = [t for t in snapshot.proxmox.value.tasks if t.vmid == container.vmid]
    if running:
        return f"its {running[0].kind}"
    if container.lock:
        return f"its lock ({container.lock})"
    return "" if container.status in ("running", "stopped") else "its state"


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return ""
