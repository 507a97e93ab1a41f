"""``vmid_unique``: no VMID has two owners; no container of ours is without a record longer than one operation's deadline."""

from __future__ import annotations

from flows.simulate.invariants.base import Invariant, Scene
from flows.simulate.loop import Process

#: Beyond the deadline: undoing waits for the sweep, and is tried again.
SLACK_S = 1800.0
_MAKING = frozenset({"creating", "active", "suspended", "deleting"})


class VmidUnique(Invariant):
    name = "vmid_unique"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._stray: dict[int, float] = {}

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        if not tables & {"servers", "vmids"}:
            return
        owners: dict[int, str] = {}
        for server in self.ledger.servers.values():
            if server.state in _MAKING:
                other = owners.setdefault(server.vmid, server.id)
                if other != server.id:
                    self.broken(f"VMID {server.vmid} belongs to {other} and {server.id}")
        reserved = dict(self.ledger.rows("SELECT vmid, server_id FROM vmids WHERE state = 'reserved'"))
        for vmid, owner in owners.items():
            if reserved.get(vmid) != owner:
                self.broken(f"VMID {vmid} of {owner} is reserved for {reserved.get(vmid)}")

    def minute(self) -> None:
        recorded = {s.vmid for s in self.ledger.servers.values() if s.state in _MAKING}
        strays = {
            vmid
            for vmid, m in self.world.machines.items()
            if (m.ours() or m.lock) and vmid not in recorded and vmid not in self.scene.faults.people.strangers
        }
        self._stray = {vmid: self._stray.get(vmid, self.scene.now) for vmid in strays}
        for vmid, since in self._stray.items():
            if self.scene.now - since > self.scene.settings.timing.operation_s + SLACK_S:
                self.broken(f"container {vmid} of ours has had no record since {since:.0f} s")
