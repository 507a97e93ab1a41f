"""Repairs of operations: one transaction each, but for the submissions. They take no lease; the run that follows does."""

from __future__ import annotations

from collections.abc import Mapping

from flows.act.deps import Deps
from flows.act.policy import policy_of
from flows.decide.orders import exhausted
from flows.domain.event import Event, EventKind
from flows.domain.finding import Action, Finding
from flows.domain.operation import LIVE_STATES, NO_UNDO, Operation, OperationKind, OperationState, Queue
from flows.state import attempts, leases, operations, outbox, servers
from flows.state.database import Tx


async def order(deps: Deps, tx: Tx, finding: Finding, action: Action) -> bool:
    """Carries out an operation repair inside the intent's transaction. False: the condition is gone (already healed)."""
    assert finding.operation_id is not None
    operation = await operations.get(tx, finding.operation_id)
    if finding.evidence.get("then") == "release":
        return await _left_behind(tx, finding, operation)
    if operation is None or operation.state not in LIVE_STATES or operation.attempt != finding.evidence.get("attempt", operation.attempt):
        return False
    if action is Action.REVOKE_AND_RESUBMIT:
        return await _orphaned(deps, tx, finding, operation)
    if action is Action.FAIL_STUCK:
        return await _stuck(deps, tx, finding, operation)
    if action is Action.UNDO_AGAIN:
        return await _undo_again(deps, tx, operation)
    raise AssertionError(f"{action} is no transaction alone: see submission.py")


async def _left_behind(tx: Tx, finding: Finding, operation: Operation | None) -> bool:
    """The operation is over and only its lease is held: nothing is resubmitted, the server becomes free."""
    lease = await leases.get(tx, finding.server_id) if finding.server_id is not None else None
    if lease is None or lease.operation_id != finding.operation_id or not lease.expired(tx.now):
        return False
    if operation is not None and operation.state in LIVE_STATES:
        return False
    await leases.revoke(tx, lease.subject)
    return True


async def _orphaned(deps: Deps, tx: Tx, finding: Finding, operation: Operation) -> bool:
    lease = await leases.get(tx, operation.server_id)
    if lease is None or lease.operation_id != operation.id or not lease.expired(tx.now):
        return False
    await leases.revoke(tx, operation.server_id)
    await attempts.end(tx, operation.id, operation.attempt, "orphaned")
    if exhausted(operation, policy_of(deps.settings), tx.now) or finding.evidence.get("then") == "compensate":
        await _give_up(deps, tx, operation)
    else:
        await attempts.next_attempt(tx, operation.id)
    return True


async def _give_up(deps: Deps, tx: Tx, operation: Operation) -> None:
    """No more tries forward. Compensation that itself used up its tries becomes ``cleanup_required``; so does a deletion. What has no undo
    has failed here and now, and is told as its own run would have told it."""
    reason = {
        "type": "Exhausted",
        "what": f"{operation.kind} was interrupted too often or stood still",
        "why": f"attempts: {operation.claimed}",
        "remedy": "",
    }
    if operation.kind in NO_UNDO:
        await operations.set_state(tx, operation.id, OperationState.FAILED, error=reason)
        await _tell(deps, tx, operation, reason)
    elif operation.kind is OperationKind.DELETE or operation.state in (OperationState.COMPENSATING, OperationState.CANCELLING):
        await operations.set_state(tx, operation.id, OperationState.CLEANUP_REQUIRED, error=reason)
        await operations.undo_failed(tx, operation.id)
    else:
        await operations.set_state(tx, operation.id, OperationState.COMPENSATING, error=reason)
        await attempts.next_attempt(tx, operation.id)


async def _tell(deps: Deps, tx: Tx, operation: Operation, reason: Mapping[str, str]) -> None:
    if operation.queue is Queue.REPAIRS:
        return  # as in endings: the repair that ordered it is told of
    server = await servers.get(tx, operation.server_id)
    event = Event(
        EventKind.OPERATION_FAILED,
        key=f"{EventKind.OPERATION_FAILED.value}/{operation.id}/{operation.attempt}",
        what=f"{operation.kind} of {server.name if server else operation.server_id} failed",
        where=f"ct {server.vmid} on {server.node}" if server else "",
        done=f"{reason['what']}: {reason['why']}",
        next="the server keeps its state",
        command=f"zlh operations show {operation.id}",
        failed=True,
    )
    await outbox.put(tx, event, deps.route(event, tx.now))


async def _stuck(deps: Deps, tx: Tx, finding: Finding, operation: Operation) -> bool:
    """Whoever still runs it is fenced by the raised token and ends, its playbook with it. One that has moved on since it was looked at, to
    another step or phase or to the same step once more, is not stuck."""
    present = {
        "step": operation.step.value if operation.step else None,
        "state": operation.state.value,
        "step_deadline_at": operation.step_deadline_at,
    }
    if any(finding.evidence.get(key, value) != value for key, value in present.items()):
        return False
    lease = await leases.get(tx, operation.server_id)
    if lease is not None and lease.operation_id == operation.id:
        await leases.revoke(tx, operation.server_id)
    await attempts.end(tx, operation.id, operation.attempt, "stuck")
    await _give_up(deps, tx, operation)
    return True


async def _undo_again(deps: Deps, tx: Tx, operation: Operation) -> bool:
    if operation.state is not OperationState.CLEANUP_REQUIRED:
        return False
    await attempts.clean_up_again(tx, operation, deadline_ms=int(deps.settings.timing.operation_s * 1000))
    return True
