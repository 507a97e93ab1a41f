"""``container_missing``: an active record whose container is proven absent. Level 3: restore from backup, by approval alone.

Not listed is no proof: Proxmox is asked for the number itself (quorate, free, no task for it, no clone that may be making it).
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.server import ServerState
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database", "proxmox"})
_STATES = frozenset({ServerState.ACTIVE, ServerState.SUSPENDED})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    if not isinstance(snapshot.proxmox, Known):
        return
    absent = snapshot.proxmox.value.absent
    for server in snapshot.fleet.servers.values():
        if server.state not in _STATES or server.vmid not in absent:
            continue
        backup = snapshot.fleet.backups.get(server.id)
        yield Finding(
            check=Check.CONTAINER_MISSING,
            subject=server.id,
            summary=f"{server.name}: its container {server.vmid} is gone",
            level=3,
            action=Action.RESTORE_BACKUP,
            server_id=server.id,
            host=server.node,
            sources=SOURCES,
            evidence={"vmid": server.vmid, "node": server.node, "backup_verified_at": backup.verified_at if backup else None},
            remedy=f"zlh restore {server.name}",
        )


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    server = snapshot.fleet.servers.get(subject)
    if server is None or server.state not in _STATES or not isinstance(snapshot.proxmox, Known):
        return ""
    listed = server.vmid in snapshot.proxmox.value.containers
    return "" if listed else f"container {server.vmid} is not listed, and its absence is not proven"
