"""``backup_missed``: no verified backup for one policy interval since the later of the last one and activation; policy ``none`` never.

Severity 1 after one interval, 2 after the second in a row.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.domain.finding import Check, Finding, Policy
from flows.domain.server import ServerState
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    backups, now = snapshot.fleet.backups, snapshot.now
    for server in snapshot.fleet.servers.values():
        interval = policy.backup_interval_ms.get(server.backup_policy)
        if server.state is not ServerState.ACTIVE or server.activated_at is None or interval is None:
            continue
        last = backups.get(server.id)
        missed = (now - max(server.activated_at, last.verified_at if last else 0)) // interval
        if missed < 1:
            continue
        yield Finding(
            check=Check.BACKUP_MISSED,
            subject=server.id,
            summary=f"{server.name}: {server.backup_policy} backup missed{' twice in a row' if missed > 1 else ''}",
            level=0,
            server_id=server.id,
            host=server.node,
            sources=SOURCES,
            evidence={"last_verified_at": last.verified_at if last else None, "policy": server.backup_policy},
            remedy=f"zlh backup {server.name}",
            severity=min(missed, 2),
        )


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return ""
