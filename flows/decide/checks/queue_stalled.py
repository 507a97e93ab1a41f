"""``queue_stalled``: orders wait and their queue made no progress for 15 min. One incident for a person; nothing is compensated."""

from __future__ import annotations

from collections.abc import Iterable

from flows.domain.finding import Check, Finding, Policy
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    for queue in snapshot.fleet.queues:
        if queue.waiting <= 0 or queue.oldest_at is None:
            continue
        # A queue that was empty for hours has not stalled when an order arrives.
        if snapshot.now - max(queue.oldest_at, queue.progress_at or 0) < policy.stuck_ms:
            continue
        yield Finding(
            check=Check.QUEUE_STALLED,
            subject=f"queue:{queue.queue}",
            summary=f"queue {queue.queue}: orders wait and none has moved for {policy.stuck_ms // 60_000} min",
            level=0,
            sources=SOURCES,
            evidence={"waiting": queue.waiting, "oldest_at": queue.oldest_at, "progress_at": queue.progress_at},
            remedy="zlh doctor",
        )


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return ""
