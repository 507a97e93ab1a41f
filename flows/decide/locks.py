"""Proxmox's own locks: a container that a backup or a snapshot holds can be neither started nor stopped until its end. Pure.

Read by the checks whose repair Proxmox would refuse: to be refused for that is no failure, and must not open a breaker.
"""

from __future__ import annotations

from flows.domain.known import Known
from flows.domain.server import Server
from flows.domain.snapshot import Snapshot


def held(snapshot: Snapshot, server: Server) -> str:
    """``its lock (backup)`` while its container is locked and a task runs that may be the one which holds it: its own, or one of its node that
    names no container, as a backup of several does. Empty otherwise: a lock that was left behind is nothing to wait for."""
    if not isinstance(snapshot.proxmox, Known):
        return ""
    container = snapshot.proxmox.value.containers.get(server.vmid)
    if container is None or not container.lock:
        return ""
    tasks = snapshot.proxmox.value.tasks
    working = any(t.vmid == server.vmid or (t.vmid is None and t.node == container.node) for t in tasks)
    return f"its lock ({container.lock})" if working else ""
