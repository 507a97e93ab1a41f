"""``level_respected``: no level above the configured maximum; level 3 never without an unexpired approval."""

from __future__ import annotations

from flows.simulate.invariants.base import Invariant
from flows.simulate.loop import Process

REVIEWED = 3


class LevelRespected(Invariant):
    name = "level_respected"

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        for intent in self.ledger.fresh:
            # The level may have been lowered while the sweep was at work: it reads it when it observes.
            lowered = self.scene.now - self.scene.faults.people.lowered_at < self.scene.settings.timing.sweep_limit_s
            if intent.level > self.ledger.level and not lowered:
                self.broken(f"{intent.action} of {intent.subject} is level {intent.level}, allowed is {self.ledger.level}")
            if intent.level >= REVIEWED and not self._approved(intent.subject):
                self.broken(f"{intent.action} of {intent.subject} was approved by nobody")

    def _approved(self, subject: str) -> bool:
        query = "SELECT COUNT(*) FROM reviews WHERE decision = 'approved' AND expires_at > ? AND server_id = ?"
        return bool(self.ledger.rows(query, self.ledger.now_ms(), subject)[0][0])
