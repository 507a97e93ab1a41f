"""M3: which machines run a controller, a worker or a queue consumer, against those that should. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flows.domain.topology import Expected, Peer
from flows.domain.validation import Part, Problem

WORKER = "engine's worker"


def problems(peers: Sequence[Peer], expected: Expected) -> Iterator[Problem]:
    """One for each unexpected machine and role, one for too many workers."""
    strangers: dict[tuple[str, str], list[Peer]] = {}
    for peer in peers:
        if not known(peer, expected):
            strangers.setdefault((peer.role, peer.host or peer.address), []).append(peer)
    for (role, where), group in sorted(strangers.items()):
        names = ", ".join(sorted({p.name for p in group})[:5])
        says = f"{len(group)} × {role} on {where or 'an unnamed machine'}, where none is expected: {names}"
        yield Problem(Part.WORKERS, "unexpected_host", tuple(f"{_noun(role)}:{p.name}" for p in group), says, _stop(where, expected))
    workers = [p for p in peers if p.role == WORKER]
    if len(workers) > expected.workers:
        says = f"{len(workers)} workers are online, {expected.workers} expected: {', '.join(sorted(p.name for p in workers))}"
        remedy = "stop those that should not be, or set ZLH_TOPOLOGY__WORKERS"
        yield Problem(Part.WORKERS, "too_many_workers", tuple(f"worker:{p.name}" for p in workers), says, remedy)


def known(peer: Peer, expected: Expected) -> bool:
    """A machine that may be there: by its name, which a name server may have completed, or where only an address is known by that."""
    if peer.host:
        return peer.host in expected.hosts or peer.host.partition(".")[0] in expected.hosts
    if peer.local:
        return expected.here in expected.hosts
    return bool(peer.address) and any(peer.address in addresses for addresses in expected.hosts.values())


def _noun(role: str) -> str:
    return {WORKER: "worker", "Redis client": "redis", "database connection": "database"}.get(role, "holder")


def _stop(where: str, expected: Expected) -> str:
    allowed = ", ".join(sorted(expected.hosts))
    return f"on {where or 'that machine'}: systemctl stop zlh; if it belongs there, add it to ZLH_TOPOLOGY__HOSTS (now {allowed})"
