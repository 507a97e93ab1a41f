"""``operation_unsubmitted``: an attempt that no run claimed for 30 s, in whatever phase, while the engine holds no unfinished run under its key.

The same attempt is submitted again where the engine never saw the key, the next one where it saw and lost it: keys never expire there.
An attempt that has waited too long altogether is ``stuck_provisioning``'s.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide import orders
from flows.decide.checks import stuck_provisioning
from flows.decide.remedies import mend
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.operation import LIVE_STATES, engine_key
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database", "engine"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    if not isinstance(snapshot.engine, Known):
        return
    fleet, runs = snapshot.fleet, snapshot.engine.value.runs
    for operation in fleet.operations.values():
        if operation.state not in LIVE_STATES or not orders.waiting(operation):
            continue
        if snapshot.now - operation.attempt_at < policy.unsubmitted_ms or stuck_provisioning.why(snapshot, policy, operation):
            continue
        run = runs.get(engine_key(snapshot.generation, operation.id, operation.attempt))
        if run is not None and not run.finished:
            continue
        what = "the engine never saw" if run is None else f"the engine lost (its run ended as {run.state})"
        yield orders.finding(
            Check.OPERATION_UNSUBMITTED,
            fleet,
            operation,
            f"{what} attempt {operation.attempt}",
            action=Action.SUBMIT_ATTEMPT if run is None else Action.NEXT_ATTEMPT,
            remedy=mend(snapshot, f"zlh operations show {operation.id}"),
            evidence={"then": "resubmit", "run": run.id if run is not None else None},
            sources=SOURCES,
        )


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return ""
