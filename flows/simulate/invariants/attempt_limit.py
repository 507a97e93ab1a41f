"""``attempt_limit``: never more than 3 counted attempts per server in any rolling hour; concurrency limits kept."""

from __future__ import annotations

from collections import Counter

from flows.simulate.invariants.base import BULK, OF_OPERATIONS, WITHDRAWING, Invariant
from flows.simulate.loop import Process

HOUR_MS = 3_600_000


class AttemptLimit(Invariant):
    name = "attempt_limit"

    def committed(self, process: Process | None, tables: frozenset[str]) -> None:
        policy = self.scene.settings.policy
        for intent in self.ledger.fresh:
            hour = [i for i in self.ledger.intents.values() if intent.intent_at - HOUR_MS < i.intent_at <= intent.intent_at]
            if intent.action in BULK:
                self._most(3, [i.id for i in hour if i.action in BULK and i.subject == intent.subject], f"bulk repairs of {intent.subject}")
            elif intent.action in WITHDRAWING:
                self._most(12, [i.id for i in hour if i.action in WITHDRAWING and i.subject == intent.subject], f"withdrawals of {intent.subject}")
            elif intent.action not in OF_OPERATIONS and intent.server_id is not None:
                counted = [
                    i.id for i in hour
                    if i.server_id == intent.server_id and i.action not in WITHDRAWING and i.action not in OF_OPERATIONS and i.action not in BULK
                ]  # fmt: skip
                self._most(policy.breaker_attempts, counted, f"attempts at {intent.server_id}")
            under_way = self.ledger.open()
            self._most(policy.concurrent_repairs, [i.id for i in under_way], "repairs at once")
            for host, number in Counter(i.host for i in under_way if i.host).items():
                if number > policy.concurrent_per_host:
                    self.broken(f"{number} repairs at once on {host}")

    def _most(self, limit: int, found: list[str], what: str) -> None:
        if len(found) > limit:
            self.broken(f"{len(found)} {what} within the hour or at once, {limit} are allowed")
