"""``alerted``: each alert-worthy transition reaches its channel at least once; more than once only if an answer was lost.

Alert-worthy: an episode that says that people were told, a breaker that opened, an operation that failed for good, a pause that lasts a day.
An operation that is a repair is told as the repair's outcome, by the sweep that settles it.
"""

from __future__ import annotations

from flows.act.sweep import SweepResult
from flows.simulate.invariants.base import BULK, OF_OPERATIONS, WITHDRAWING, Invariant, Scene
from flows.simulate.ledger import Intent
from flows.simulate.loop import Process
from flows.simulate.world import Effect

FAILED = frozenset({"failed", "unverified"})
HOUR_MS = 3_600_000
#: One may be at work already when the operation fails, and a twin beside it.
SWEEPS = 3


class Alerted(Invariant):
    name = "alerted"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._told: dict[str, tuple[int | None, int | None]] = {}
        self._posted: dict[str, list[float]] = {}
        self._failed: set[str] = set()
        self._unsettled: dict[str, int] = {}

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        if "episodes" in tables:
            self._episodes()
        if self.ledger.closed:
            for intent in self.ledger.closed:
                self._breaker(intent)
        if "operations" in tables:
            for id_, kind, queue in self.ledger.rows(
                "SELECT id, kind, queue FROM operations WHERE state = 'failed' AND finished_at > ?", self.ledger.now_ms() - 60_000
            ):
                if id_ not in self._failed:
                    self._failed.add(id_)
                    if self.ledger.rows("SELECT 1 FROM outbox WHERE key LIKE ?", f"%_failed/{id_}/%"):
                        continue
                    if queue != "repairs":
                        self.broken(f"{kind} {id_} failed, and nobody is told")
                    self._unsettled[id_] = 0

    def swept(self, process: Process, result: SweepResult | None) -> None:
        """Each sweep that looked at all begins by settling what has ended."""
        if result is None or result.plan is None:
            return
        told = "SELECT 1 FROM repairs r JOIN outbox o ON o.key = 'action/' || r.id WHERE r.operation_id = ?"
        for id_ in list(self._unsettled):
            self._unsettled[id_] += 1
            if self.ledger.rows(told, id_):
                del self._unsettled[id_]
            elif self._unsettled[id_] > SWEEPS:
                self.broken(f"the repair {id_} failed, and {self._unsettled[id_]} sweeps later nobody is told")

    def _episodes(self) -> None:
        rows = self.ledger.rows("SELECT id, open_key, escalated_at, recalled_at FROM episodes WHERE closed_at IS NULL AND escalated_at IS NOT NULL")
        for id_, key, escalated, recalled in rows:
            if self._told.get(id_) == (escalated, recalled):
                continue
            self._told[id_] = (escalated, recalled)
            server = key.partition("/")[2]
            found = self.ledger.rows("SELECT 1 FROM outbox WHERE key LIKE ? AND created_at >= ?", f"%/{key}/%", escalated - 1000)
            breaker = self.ledger.rows("SELECT 1 FROM outbox WHERE kind = 'breaker_opened' AND created_at > ?", escalated - HOUR_MS - 60_000)
            if not found and not breaker:
                self.broken(f"the episode {key} of {server} says that people were told, and nobody is")

    def _breaker(self, intent: Intent) -> None:
        """The failure that opens a breaker, by our own count."""
        if intent.outcome not in FAILED or intent.server_id is None or intent.action in WITHDRAWING | OF_OPERATIONS | BULK:
            return
        since = self.ledger.now_ms() - HOUR_MS
        mine = [i for i in self.ledger.intents.values() if i.server_id == intent.server_id and i.intent_at > since and i.outcome in FAILED]
        mine = [i for i in mine if i.action not in WITHDRAWING | OF_OPERATIONS | BULK]
        if len(mine) != self.scene.settings.policy.breaker_attempts:
            return
        keys = [f"breaker/{i.id}" for i in mine]
        if not any(self.ledger.rows("SELECT 1 FROM outbox WHERE key = ?", key) for key in keys):
            self.broken(f"the breaker of {intent.server_id} opened, and nobody is told")

    def effect(self, effect: Effect) -> None:
        if effect.source != "discord":
            return
        before = self._posted.setdefault(effect.target, [])
        doubt = max(self.scene.doubt("discord"), self.scene.doubt("database"), self.scene.doubt("dispatch"))
        if before and doubt < before[-1] - 60:
            self.broken(f"{effect.target} was posted again after {effect.at - before[-1]:.0f} s, and no answer was lost")
        before.append(effect.at)

    def ended(self) -> None:
        rows = self.ledger.rows("SELECT key, state, folded_into FROM outbox WHERE created_at < ?", self.ledger.now_ms() - 15 * 60_000)
        for key, state, into in rows:
            if state == "folded" and into is not None:
                continue
            if key not in self._posted:
                self.broken(f"{key} ({state}) never reached its channel")
