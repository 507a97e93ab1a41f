"""Circuit breakers: 3 counted repair attempts per server per rolling hour, by the intents that were written. Pure.

Withdrawals neither count nor are blocked, but stop at 12 an hour per server, and per entry where no server is known; since no breaker ever
tells of them, three that failed within the hour call a person. A bulk repair counts against its source, 3 an hour.
Repairs of operations are counted by the operation's own attempts. A destructive candidate needs no acknowledgement of its own: each of its acts
uses an approval up, and none is given while the breaker is open. ``act`` asks :func:`counts` when it writes an intent.
"""

from __future__ import annotations

from collections import Counter

from flows.domain.finding import OPERATION_ACTIONS, WITHDRAWALS, Action, Check, EpisodeRow, Finding, Outcome, Policy, RepairRow
from flows.domain.snapshot import Fleet

#: Repairs of a whole source at once.
BULK = frozenset({Action.REHYDRATE_PROXY})
#: The withdrawals' limit is per hour, whatever the breaker's window.
_HOUR_MS = 3_600_000
_FAILURES = frozenset({Outcome.FAILED, Outcome.UNVERIFIED})


def counts(action: Action) -> bool:
    """Whether an attempt of this action counts against its server's breaker."""
    return action not in WITHDRAWALS and action not in OPERATION_ACTIONS and action not in BULK


class Breakers:
    """The last hour's repairs, counted once per sweep."""

    def __init__(self, fleet: Fleet, policy: Policy, now: int) -> None:
        self._policy = policy
        self._counted: dict[str, list[RepairRow]] = {}
        for row in fleet.repairs:
            if row.counted and row.intent_at > now - policy.breaker_window_ms:
                self._counted.setdefault(row.server_id or row.subject, []).append(row)
        self._bulk = Counter(r.subject for r in fleet.repairs if r.action in BULK and r.intent_at > now - _HOUR_MS)
        withdrawn = [r for r in fleet.repairs if r.action in WITHDRAWALS and r.intent_at > now - _HOUR_MS]
        self._withdrawals = Counter(key for r in withdrawn for key in (r.server_id, r.subject) if key is not None)
        self._failed = Counter((r.check, r.subject) for r in withdrawn if r.outcome in _FAILURES)

    def attempts(self, owner: str) -> int:
        """Counted attempts of the rolling window. ``owner``: a server's id, or the subject where there is no server."""
        return len(self._counted.get(owner, ()))

    def is_open(self, owner: str) -> bool:
        return self.attempts(owner) >= self._policy.breaker_attempts

    def blocks(self, finding: Finding) -> str:
        """Why a breaker forbids the finding's repair, in words; empty if none does."""
        action = finding.action
        if action is None or action in WITHDRAWALS or action in OPERATION_ACTIONS:
            return ""
        if action in BULK:
            done = self._bulk[finding.subject]
            return f"{done} bulk repairs within the hour" if done >= self._policy.bulk_per_hour else ""
        owner = finding.server_id or finding.subject
        if not self.is_open(owner):
            return ""
        return f"{self.attempts(owner)} attempts within the hour"

    def exhausted_withdrawals(self, finding: Finding) -> bool:
        if finding.action not in WITHDRAWALS:
            return False
        done = max(self._withdrawals[finding.subject], self._withdrawals[finding.server_id or ""])
        return done >= self._policy.withdrawals_per_hour

    def failing(self, finding: Finding) -> bool:
        """Whether its withdrawals keep failing, as many as would open a breaker."""
        return finding.action in WITHDRAWALS and self._failed[finding.check, finding.subject] >= self._policy.breaker_attempts

    def announced(self, finding: Finding, episode_id: str | None) -> bool:
        """Whether the failure that opened the server's breaker was this very episode's, and so raised its alert. A breaker that another
        drift of the server opened told nobody of this one."""
        return episode_id is not None and self._alerted(finding.server_id or finding.subject, finding.check, episode_id)

    def told_of(self, episode: EpisodeRow) -> bool:
        """:meth:`announced`, of an episode that is over: perhaps before any sweep saw the open breaker."""
        return self._alerted(episode.server_id or episode.subject, episode.check, episode.id)

    def _alerted(self, owner: str, check: Check, episode_id: str) -> bool:
        rows = self._counted.get(owner, [])
        if sum(r.outcome in _FAILURES for r in rows) < self._policy.breaker_attempts:
            return False
        last = max(rows, key=lambda r: (r.intent_at, r.id))
        return last.outcome in _FAILURES and last.check is check and last.episode_id == episode_id
