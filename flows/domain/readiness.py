"""The one readiness predicate, used by the API, provisioning, the sweep, rehydrate and backups.

Absent, malformed or older than 150 s is *not ready* for publishing and *unknown* for withdrawing.
"""

from __future__ import annotations

from flows.domain.agent import Observation

#: An observation older than this proves nothing, in milliseconds.
FRESH_MS = 150_000


def fresh(observation: Observation | None, now: int) -> bool:
    """Whether there is a well-formed answer young enough to be believed."""
    return observation is not None and observation.ready is not None and 0 <= now - observation.at + 5_000 <= FRESH_MS + 5_000


def may_publish(observation: Observation | None, now: int) -> bool:
    """Publishing needs proof of readiness."""
    return fresh(observation, now) and observation is not None and observation.ready is True


def may_withdraw(observation: Observation | None, now: int) -> bool:
    """Withdrawing needs proof of the opposite: an old or missing answer is no proof."""
    return fresh(observation, now) and observation is not None and observation.ready is False
