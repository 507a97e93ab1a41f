"""``explained``: every open finding has a reason; every effect has an intent before it and an outcome after it."""

from __future__ import annotations

from flows.act.sweep import SweepResult
from flows.simulate.invariants.base import Invariant, Scene
from flows.simulate.loop import Process
from flows.simulate.world import Effect

#: Sweeps that find an intent closed by nobody, after its actor's lease has run out.
SWEEPS = 4


class Explained(Invariant):
    name = "explained"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._open: dict[str, int] = {}

    def effect(self, effect: Effect) -> None:
        process = effect.process
        if process is None or effect.source == "discord":
            return
        what = f"{process} did {effect.source} {effect.verb} of {effect.target}"
        if process.kind == "sweep":
            epoch = process.told.get("epoch")
            if not any(i.epoch == epoch and i.seen <= effect.sent for i in self.ledger.intents.values()):
                self.broken(f"{what} without an intent")
        elif process.kind == "run":
            operation, _ = process.told["run"]
            if not self.ledger.rows("SELECT 1 FROM journal WHERE operation_id = ? LIMIT 1", operation):
                self.broken(f"{what} without a line in the journal")

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        if "episodes" in tables:
            for key, reason in self.ledger.rows("SELECT open_key, reason FROM episodes WHERE closed_at IS NULL"):
                if not reason:
                    self.broken(f"{key} is open without a reason")

    def swept(self, process: Process, result: SweepResult | None) -> None:
        if result is None or result.plan is None:
            return
        waiting = {}
        for intent in self.ledger.open():
            lease = self.ledger.leases.get(intent.lease_subject or "")
            held = lease is not None and lease.holder is not None and lease.expires_at > self.ledger.now_ms()
            if not held and not (intent.operation_id and intent.operation_id in self._live()):
                waiting[intent.id] = self._open.get(intent.id, 0) + 1
                if waiting[intent.id] > SWEEPS:
                    self.broken(f"{intent.action} of {intent.subject} has had no outcome for {waiting[intent.id]} sweeps")
        self._open = waiting

    def _live(self) -> set[str]:
        return {row[0] for row in self.ledger.rows("SELECT id FROM operations WHERE live_server IS NOT NULL")}
