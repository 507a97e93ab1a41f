"""``cleanup_required``: an undo or a deletion failed earlier. It is tried again with doubling back-off; after 3 failures a person is called."""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide import orders
from flows.decide.remedies import mend
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.operation import OperationState
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    fleet = snapshot.fleet
    for operation in fleet.operations.values():
        if operation.state is not OperationState.CLEANUP_REQUIRED:
            continue
        given_up = operation.undo_failures >= policy.cleanup_attempts
        yield orders.finding(
            Check.CLEANUP_REQUIRED,
            fleet,
            operation,
            f"cleaning up failed{f' {operation.undo_failures} times: a person is needed' if given_up else ''}",
            action=None if given_up else Action.UNDO_AGAIN,
            remedy=mend(snapshot, f"zlh operations retry {operation.id}"),
            evidence={"failures": operation.undo_failures, "error": dict(operation.error or {})},
            sources=SOURCES,
            not_before=None if given_up else operation.progress_at + policy.cleanup_backoff_ms * 2 ** max(operation.undo_failures - 1, 0),
        )


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return ""
