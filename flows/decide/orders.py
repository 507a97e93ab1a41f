"""What the operation checks share: who holds an operation, whether its attempt waits, and how giving it up would end it. Pure."""

from __future__ import annotations

from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.lease import Lease, LeaseKind
from flows.domain.operation import FORWARD_ONLY, NO_UNDO, AttemptState, Operation, OperationState
from flows.domain.snapshot import Fleet

#: Phases in which attempts undo.
UNDOING = frozenset({OperationState.CANCELLING, OperationState.COMPENSATING})
_UNCLAIMED = frozenset({AttemptState.UNCLAIMED, AttemptState.SUBMITTING, AttemptState.SUBMITTED})


def waiting(operation: Operation) -> bool:
    """Whether no run owns its newest attempt yet."""
    return operation.attempt_state in _UNCLAIMED


def own_lease(fleet: Fleet, operation: Operation) -> Lease | None:
    """The lease that a run of this operation holds or held last."""
    lease = fleet.leases.get(operation.server_id)
    if lease is None or lease.holder is None or lease.kind is not LeaseKind.OPERATION or lease.operation_id != operation.id:
        return None
    return lease


def orphaned(fleet: Fleet, operation: Operation, now: int) -> bool:
    """Its run's lease has expired by the database's clock: the only proof of life is gone, whatever the engine says."""
    lease = own_lease(fleet, operation)
    return lease is not None and lease.expired(now)


def exhausted(operation: Operation, policy: Policy, now: int) -> bool:
    """No attempt is left in this phase. Only claimed ones count. The operation's deadline ends tries forward, never an undo."""
    return operation.claimed >= policy.max_attempts or (operation.state not in UNDOING and now >= operation.deadline_at)


def ends_as(operation: Operation) -> OperationState:
    """The state that giving up leads to: what has no undo fails, a deletion or an undo is tried again later, the rest is undone."""
    if operation.kind in NO_UNDO:
        return OperationState.FAILED
    if operation.kind in FORWARD_ONLY or operation.state in UNDOING:
        return OperationState.CLEANUP_REQUIRED
    return OperationState.COMPENSATING


def finding(
    check: Check,
    fleet: Fleet,
    operation: Operation,
    why: str,
    *,
    action: Action | None,
    remedy: str,
    evidence: dict[str, object],
    sources: frozenset[str],
    confirmed: bool = True,
    not_before: int | None = None,
) -> Finding:
    """A finding about an operation, level 1. Evidence always names state, attempt and claimed count."""
    server = fleet.servers.get(operation.server_id)
    name = server.name if server is not None else operation.server_id
    return Finding(
        check=check,
        subject=f"operation:{operation.id}",
        summary=f"{operation.kind} of {name}: {why}",
        level=1,
        action=action,
        server_id=operation.server_id,
        operation_id=operation.id,
        host=server.node if server is not None else None,
        confirmed=confirmed,
        sources=sources,
        evidence={"state": operation.state.value, "attempt": operation.attempt, "claimed": operation.claimed, **evidence},
        remedy=remedy,
        not_before=not_before,
    )
