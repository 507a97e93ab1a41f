"""``level_respected``: no level above the configured maximum; level 3, and what a person must approve each time, never without an unexpired
approval, which it uses up."""

from __future__ import annotations

from flows.simulate.invariants.base import Invariant
from flows.simulate.ledger import Intent
from flows.simulate.loop import Process

REVIEWED = 3
#: Below that level, and approved each time all the same.
APPROVED = frozenset({"restart_workload"})


class LevelRespected(Invariant):
    name = "level_respected"

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        for intent in self.ledger.fresh:
            # The level may have been lowered while the sweep was at work: it reads it when it observes.
            lowered = self.scene.now - self.scene.faults.people.lowered_at < self.scene.settings.timing.sweep_limit_s
            if intent.level > self.ledger.level and not lowered:
                self.broken(f"{intent.action} of {intent.subject} is level {intent.level}, allowed is {self.ledger.level}")
            begun = intent.outcome != "failed"  # in the very transaction of its intent: what could not be begun, and used nothing up
            if begun and (intent.level >= REVIEWED or intent.action in APPROVED) and not self._approved(intent):
                self.broken(f"{intent.action} of {intent.subject} was approved by nobody")

    def _approved(self, intent: Intent) -> bool:
        """Whether its own transaction took an approval of just this from approved to carried out."""
        wanted = (intent.check, intent.action, intent.subject)
        return any((review.check, review.action, review.subject) == wanted for review in self.ledger.used)
