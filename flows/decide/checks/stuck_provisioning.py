"""``stuck_provisioning``: an operation of any kind that does not move, heartbeat or not.

Owned by a run: no journal change for 15 min, or a step over its deadline. Waiting for a run: over the operation's deadline, or 15 min
without progress while its queue moved on past it. An expired lease is ``operation_orphaned``'s; a queue that moves for nobody is
``queue_stalled``'s, and nothing is compensated for it before the operations' own deadline. Evidence ``ends_as``: what giving up leads to.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide import orders
from flows.decide.remedies import mend
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.operation import LIVE_STATES, Operation, OperationState
from flows.domain.snapshot import Fleet, Snapshot

SOURCES = frozenset({"database"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    for operation in snapshot.fleet.operations.values():
        reason = why(snapshot, policy, operation)
        if reason:
            yield orders.finding(
                Check.STUCK_PROVISIONING,
                snapshot.fleet,
                operation,
                reason,
                action=Action.FAIL_STUCK,
                remedy=mend(snapshot, f"zlh operations show {operation.id}"),
                evidence={
                    "then": "compensate",
                    "ends_as": orders.ends_as(operation).value,
                    "step": operation.step.value if operation.step else None,
                    "step_deadline_at": operation.step_deadline_at,
                },
                sources=SOURCES,
            )


def why(snapshot: Snapshot, policy: Policy, operation: Operation) -> str:
    """Why the operation counts as stuck; empty if it does not."""
    fleet, now = snapshot.fleet, snapshot.now
    if operation.state not in LIVE_STATES or operation.state is OperationState.CLEANUP_REQUIRED or orders.orphaned(fleet, operation, now):
        return ""
    minutes = policy.stuck_ms // 60_000
    if orders.waiting(operation):
        # Attempts that were lost before a run claimed them are no progress; one that succeeds a run waits from its own beginning.
        since = operation.progress_at if operation.claimed == 0 else max(operation.progress_at, operation.attempt_at)
        if operation.state not in orders.UNDOING and now >= operation.deadline_at:
            return "no run took it before its deadline"
        if now - since >= policy.stuck_ms and _passed_over(fleet, operation, since):
            return f"waiting for {minutes} min while its queue moved on"
        return ""
    # A deadline older than this attempt belongs to the one before it.
    deadline = operation.step_deadline_at
    if deadline is not None and operation.attempt_at < deadline <= now:
        return f"step {operation.step} is over its deadline"
    since = max(operation.progress_at, operation.attempt_at)
    journal = max((row.finished_at or row.started_at for row in fleet.steps.get(operation.id, ())), default=0)
    return f"no progress for {minutes} min" if now - max(since, journal) >= policy.stuck_ms else ""


def _passed_over(fleet: Fleet, operation: Operation, since: int) -> bool:
    """The queue moved after ``since`` and nothing is left in front: waiting for one's turn is no fault."""
    moved = any(q.queue == operation.queue and q.progress_at is not None and q.progress_at > since for q in fleet.queues)
    return moved and not any(_in_front(other, operation) for other in fleet.operations.values() if other.id != operation.id)


def _in_front(other: Operation, operation: Operation) -> bool:
    if other.queue is not operation.queue or other.state not in LIVE_STATES or other.state is OperationState.CLEANUP_REQUIRED:
        return False
    asked = other.attempt_at if orders.waiting(other) else other.created_at
    return (asked, other.id) < (operation.attempt_at, operation.id)


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return ""
