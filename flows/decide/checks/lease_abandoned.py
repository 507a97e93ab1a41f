"""``lease_abandoned``: an expired ``patch`` or ``restore`` lease. It blocks everything but its own resumption, which only a person starts."""

from __future__ import annotations

from collections.abc import Iterable

from flows.domain.finding import Check, Finding, Policy
from flows.domain.lease import BLOCKS_WHEN_EXPIRED, Lease
from flows.domain.server import Server
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    for lease in snapshot.fleet.leases.values():
        if lease.kind not in BLOCKS_WHEN_EXPIRED or not lease.expired(snapshot.now):
            continue
        server = snapshot.fleet.servers.get(lease.subject)
        yield Finding(
            check=Check.LEASE_ABANDONED,
            subject=f"lease:{lease.subject}",
            summary=f"{server.name if server else lease.subject}: a {lease.kind} was left unfinished and still blocks it",
            level=0,
            server_id=server.id if server else None,
            host=server.node if server else None,
            sources=SOURCES,
            evidence={"kind": lease.kind.value, "holder": lease.holder, "reason": lease.reason, "expired_at": lease.expires_at},
            remedy=_remedy(lease, server),
        )


def _remedy(lease: Lease, server: Server | None) -> str:
    """What a person took, that person takes up again by the same command; anybody else frees it, after a look."""
    if server is not None and (lease.holder or "").startswith("cli:"):
        return f"zlh lease hold {server.name} --kind {lease.kind} --pid PID"
    return f"zlh lease release {server.name if server else lease.subject}"


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return ""
