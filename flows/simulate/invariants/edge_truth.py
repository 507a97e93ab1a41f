"""``edge_truth``: never longer than 3 sweeps of known data is an unready backend registered, or a record pointing to what is not ours.

Counted are sweeps that knew (the proxy or the zone, and the backend's agent or that its container is stopped) and that nothing lawful kept
away: a lease, a pause, an operation, an incident, the limits' queue, a refusing receiver.
"""

from __future__ import annotations

from flows.act.sweep import SweepResult
from flows.clients.dns_names import OWNER_LABEL
from flows.simulate.invariants.base import Invariant, Scene
from flows.simulate.ledger import ServerRow
from flows.simulate.loop import Process

SWEEPS = 3


class EdgeTruth(Invariant):
    name = "edge_truth"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._wrong: dict[str, int] = {}

    def swept(self, process: Process, result: SweepResult | None) -> None:
        if result is None or result.plan is None or result.outcome == "failed":
            return
        if self.ledger.level < 1:
            self._wrong.clear()
            return
        unknown = process.told.get("unknown at observation", frozenset())
        answered = process.told.get("answered at observation", frozenset())
        wrong: dict[str, str] = {}
        incident = self._incidents()
        if "proxy" not in unknown:
            wrong |= self._registrations(answered, "proxmox" in unknown, incident)
        if "dns" not in unknown:
            wrong |= self._records(answered, incident)
        troubled = self.scene.troubled("proxy", "dns", "agents")
        queue = len(wrong) // 2  # two repairs per host, four in all, one per server
        counted = {}
        for key, why in wrong.items():
            counted[key] = self._wrong.get(key, 0) + (0 if troubled else 1)
            if counted[key] > SWEEPS + queue:
                self.broken(f"{key}: {why}, for {counted[key]} sweeps that knew")
        self._wrong = counted

    def _incidents(self) -> set[str]:
        return {
            row[0] for row in self.ledger.rows("SELECT subject FROM episodes WHERE closed_at IS NULL AND \"check\" IN ('host_down', 'source_drift')")
        }

    def _registrations(self, answered: frozenset[str], proxmox_unknown: bool, incident: set[str]) -> dict[str, str]:
        names = {s.name: s for s in self.ledger.servers.values() if s.lives}
        found = {}
        for name, entry in self.world.registrations.items():
            server = names.get(name)
            if "source:proxy" in incident or (server is not None and f"host:{server.node}" in incident):
                continue
            if self.scene.held(server.id if server else None, server.node if server else None, f"proxy:{name}"):
                continue
            why = self._unready(server, entry.address, answered, proxmox_unknown)
            if why and not self.scene.withdrawn_out(server.id if server else None, f"proxy:{name}"):
                found[f"registration {name}"] = why
        return found

    def _unready(self, server: ServerRow | None, address: str, answered: frozenset[str], proxmox_unknown: bool) -> str:
        if server is None:
            return "no server has this name"
        if not server.published:
            return f"it is {server.state}, its edge {server.edge}"
        if address != server.address:
            return "it is not the server's address"
        machine = self.world.machines.get(server.vmid)
        if machine is None or not self.world.nodes.get(machine.node, False):
            return ""  # unknown to everybody
        if machine.status == "stopped":
            return "" if proxmox_unknown else "its container is stopped"
        return "its backend is not ready" if server.id in answered and not machine.ready else ""

    def _records(self, answered: frozenset[str], incident: set[str]) -> dict[str, str]:
        if "source:dns" in incident:
            return {}
        ours = self.scene.settings.proxy.player_address
        domain = self.scene.settings.dns.zone
        names = {f"{s.name}.{domain}": s for s in self.ledger.servers.values() if s.lives}
        found = {}
        for label, records in self.world.zone.items():
            if label.startswith(OWNER_LABEL):
                continue
            if OWNER_LABEL + label not in self.world.zone or all(r.value == ours for r in records):
                continue
            server = names.get(label)
            if server is not None and (f"host:{server.node}" in incident or not server.published or self._spent(server.id)):
                continue
            machine = self.world.machines.get(server.vmid) if server is not None else None
            if server is not None and (server.id not in answered or machine is None or not machine.ready):
                continue  # publishing needs proof of readiness: nobody is sent there by name alone
            if not self.scene.held(server.id if server else None, server.node if server else None, f"dns:{label}"):
                found[f"record {label}"] = f"points to {', '.join(r.value for r in records)}"
        return found

    def _spent(self, server_id: str) -> bool:
        """Its breaker is open: publishing counts."""
        since = self.ledger.now_ms() - 3_600_000
        return sum(i.server_id == server_id and i.intent_at > since for i in self.ledger.intents.values()) >= 3
