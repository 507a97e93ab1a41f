"""``edge_truth``: never longer than 3 sweeps of known data is an unready backend registered, or a record pointing to what is not ours.

Counted are sweeps that knew (the proxy or the zone, and the backend's agent or that its container is stopped) and that nothing lawful kept
away: a lease, a pause, an operation, an incident, the limits' queue, a refusing receiver, level 0. One that did not know, or was kept away,
adds nothing and forgets nothing: an entry's count ends when the entry does, or when it is right again.
"""

from __future__ import annotations

from collections.abc import Mapping

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
        #: How many sweeps the entries before it may take, since it is wrong.
        self._queues: dict[str, int] = {}

    def swept(self, process: Process, result: SweepResult | None) -> None:
        if result is None or result.plan is None or result.outcome == "failed":
            return
        unknown = process.told.get("unknown at observation", frozenset())
        answered = process.told.get("answered at observation", {})
        wrong = self._registrations(answered, unknown) | self._records(answered, unknown)
        queue = len(wrong) // 2  # two repairs per host, four in all, one per server
        free = self.ledger.level >= 1
        counted: dict[str, int] = {}
        queues: dict[str, int] = {}
        for key, (why, knew) in wrong.items():
            source = "proxy" if key.startswith("registration") else "dns"
            counts = knew and free and not self._hindered(source)
            counted[key] = self._wrong.get(key, 0) + (1 if counts else 0)
            queues[key] = max(queue, self._queues.get(key, 0))
            if counted[key] > SWEEPS + queues[key]:
                self.broken(f"{key}: {why}, for {counted[key]} sweeps that knew")
        self._wrong, self._queues = counted, queues

    def _hindered(self, source: str) -> bool:
        """Whether the repair itself could not be made, or could not be seen to be needed, for what is wrong with a receiver or an agent."""
        return self.scene.troubled(source, "agents")

    def _incidents(self) -> set[str]:
        return {
            row[0] for row in self.ledger.rows("SELECT subject FROM episodes WHERE closed_at IS NULL AND \"check\" IN ('host_down', 'source_drift')")
        }

    def _registrations(self, answered: Mapping[str, bool], unknown: frozenset[str]) -> dict[str, tuple[str, bool]]:
        """Key of each wrong registration → what is wrong, and whether this sweep knew it and was free to mend it."""
        names = {s.name: s for s in self.ledger.servers.values() if s.lives}
        found = {}
        for name, entry in self.world.registrations.items():
            server = names.get(name)
            why, knew = self._unready(server, entry.address, answered, "proxmox" in unknown)
            if why:
                found[f"registration {name}"] = (why, knew and "proxy" not in unknown and not self._kept_away(server, f"proxy:{name}"))
        return found

    def _kept_away(self, server: ServerRow | None, subject: str) -> bool:
        source, _, _ = subject.partition(":")
        id_, node = (server.id, server.node) if server is not None else (None, None)
        if self.scene.held(id_, node, subject) or (source == "proxy" and self.scene.withdrawn_out(id_, subject)):
            return True
        incident = self._incidents()
        return f"source:{source}" in incident or f"host:{node}" in incident

    def _unready(self, server: ServerRow | None, address: str, answered: Mapping[str, bool], proxmox_unknown: bool) -> tuple[str, bool]:
        """What is wrong with a registration, empty if nothing is; and whether the sweep could know."""
        if server is None:
            return "no server has this name", True
        if not server.published:
            return f"it is {server.state}, its edge {server.edge}", True
        if address != server.address:
            return "it is not the server's address", True
        machine = self.world.machines.get(server.vmid)
        if machine is None or not self.world.nodes.get(machine.node, False):
            return "its container is gone, or its host", False
        if machine.status == "stopped":
            return "its container is stopped", not proxmox_unknown
        return ("", False) if machine.ready else ("its backend is not ready", answered.get(server.id) is False)

    def _records(self, answered: Mapping[str, bool], unknown: frozenset[str]) -> dict[str, tuple[str, bool]]:
        """The same of records. Publishing needs proof of readiness: nobody is sent there by name alone."""
        ours = self.scene.settings.proxy.player_address
        domain = self.scene.settings.dns.zone
        names: dict[str, ServerRow] = {}
        found = {}
        for label, records in self.world.zone.items():
            if label.startswith(OWNER_LABEL) or all(r.value == ours for r in records) or OWNER_LABEL + label not in self.world.zone:
                continue
            names = names or {f"{s.name}.{domain}": s for s in self.ledger.servers.values() if s.lives}
            server = names.get(label)
            knew = "dns" not in unknown and not self._kept_away(server, f"dns:{label}")
            if server is not None:
                knew = knew and server.published and bool(answered.get(server.id)) and not self._spent(server.id)
            found[f"record {label}"] = (f"points to {', '.join(r.value for r in records)}", knew)
        return found

    def _spent(self, server_id: str) -> bool:
        """Its breaker is open: publishing counts."""
        since = self.ledger.now_ms() - 3_600_000
        return sum(i.server_id == server_id and i.intent_at > since for i in self.ledger.intents.values()) >= 3
