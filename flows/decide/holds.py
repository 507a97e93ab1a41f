"""What holds automation back: a person's brakes, and leases. Asked for a single finding (``verdict``) and for the members of an incident."""

from __future__ import annotations

from flows.domain.finding import BrakeRow, BrakeScope
from flows.domain.lease import Lease
from flows.domain.snapshot import Fleet


def in_force(fleet: Fleet, now: int) -> list[BrakeRow]:
    """The brakes that have not run out, in a steady order."""
    return [b for b in sorted(fleet.brakes, key=lambda b: b.id) if b.until is None or b.until > now]


def applies(brake: BrakeRow, fleet: Fleet, server_id: str | None, host: str | None) -> bool:
    """Whether it stops what concerns this server, on this host."""
    if brake.scope is BrakeScope.ALL:
        return True
    if brake.scope is BrakeScope.HOST:
        return brake.target == host
    server = fleet.servers.get(server_id or "")
    return brake.target == server_id or (server is not None and brake.target == server.name)


def lease_on(fleet: Fleet, now: int, *subjects: str | None) -> Lease | None:
    """The first lease that keeps newcomers away from any of these."""
    for subject in subjects:
        lease = fleet.leases.get(subject) if subject is not None else None
        if lease is not None and lease.blocks(now):
            return lease
    return None
