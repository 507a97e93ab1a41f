"""``operation_orphaned``, the classic stale operation lock: the lease of an operation's run has expired by the database's clock.

The engine is not asked: a lease alone is proof of life. The repair waits while Proxmox may still run a task, or the agent a job, of the
interrupted step, at most until that step's deadline; an unknown answer counts as still running until then. Evidence ``then`` says what the
repair does: ``resubmit`` while attempts are left, ``compensate`` when not (``ends_as`` is the state that leads to), ``release`` where the
operation has ended and only its lease is left.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide import orders
from flows.decide.remedies import mend
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known, Unknown
from flows.domain.lease import Lease, LeaseKind
from flows.domain.operation import LIVE_STATES, Operation, OperationState, StepName
from flows.domain.server import ContainerType, Server
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database"})

_S = StepName
_PROXMOX_STEPS = frozenset({_S.CREATE_CONTAINER, _S.CONFIGURE, _S.START_CONTAINER, _S.DESTROY_CONTAINER})
_WORKLOAD_STEPS = frozenset({_S.START_WORKLOAD, _S.STOP_WORKLOAD, _S.RESTART_WORKLOAD})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    fleet = snapshot.fleet
    for operation in fleet.operations.values():
        if operation.state not in LIVE_STATES or operation.state is OperationState.CLEANUP_REQUIRED:
            continue
        if not orders.orphaned(fleet, operation, snapshot.now):
            continue
        running = still_running(snapshot, policy, operation)
        then = "compensate" if orders.exhausted(operation, policy, snapshot.now) else "resubmit"
        evidence: dict[str, object] = {"then": then}
        if then == "compensate":
            evidence["ends_as"] = orders.ends_as(operation).value
        if running:
            evidence["waits_for"] = running
        yield orders.finding(
            Check.OPERATION_ORPHANED,
            fleet,
            operation,
            "its run is gone, the lease has expired",
            action=Action.REVOKE_AND_RESUBMIT,
            remedy=mend(snapshot, f"zlh operations show {operation.id}"),
            evidence=evidence,
            sources=SOURCES,
            confirmed=not running,
        )
    for lease in sorted(fleet.leases.values(), key=lambda lease: lease.subject):  # of two leases of one operation, one is the finding
        if lease.kind is LeaseKind.OPERATION and lease.expired(snapshot.now) and lease.operation_id is not None:
            operation_ = fleet.operations.get(lease.operation_id)
            if operation_ is None or operation_.state not in LIVE_STATES:
                yield _left_behind(snapshot, lease)


def _left_behind(snapshot: Snapshot, lease: Lease) -> Finding:
    """A lease whose operation is over: nothing is to be resubmitted, but nobody else may take it."""
    server = snapshot.fleet.servers.get(lease.subject)
    return Finding(
        check=Check.OPERATION_ORPHANED,
        subject=f"operation:{lease.operation_id}",
        summary=f"{server.name if server else lease.subject}: the lease of an operation that has ended is still held",
        level=1,
        action=Action.REVOKE_AND_RESUBMIT,
        server_id=lease.subject,
        operation_id=lease.operation_id,
        host=server.node if server else None,
        sources=SOURCES,
        evidence={"then": "release"},
        remedy=mend(snapshot, f"zlh leases show {lease.subject}"),
    )


def still_running(snapshot: Snapshot, policy: Policy, operation: Operation) -> str:
    """What of the interrupted step may still be under way, in words; empty if nothing is, or once the step's deadline has passed."""
    if operation.step_deadline_at is None or snapshot.now >= operation.step_deadline_at:
        return ""
    server = snapshot.fleet.servers.get(operation.server_id)
    if server is None:
        return ""
    return _task(snapshot, policy, operation, server) or _job(snapshot, operation, server)


def _task(snapshot: Snapshot, policy: Policy, operation: Operation, server: Server) -> str:
    if not isinstance(snapshot.proxmox, Known):
        on_proxmox = operation.step in _PROXMOX_STEPS or (operation.step in _WORKLOAD_STEPS and server.ctype is ContainerType.DEV)
        return "Proxmox, which does not say whether a task runs" if on_proxmox else ""
    journaled = {row.upid for row in snapshot.fleet.steps.get(operation.id, ()) if row.upid}
    ours = policy.our_user.partition("!")[0]
    for task in snapshot.proxmox.value.tasks:
        if task.upid in journaled:
            return f"task {task.upid}"
        if ours and task.user.partition("!")[0] != ours:
            continue
        # A clone's task names its source: while one of our template runs, ours may be under way.
        cloning = task.kind == "vzclone" and operation.step is _S.CREATE_CONTAINER and task.vmid == server.template_vmid
        if cloning or task.vmid == server.vmid:
            return f"task {task.upid}"
    return ""


def _job(snapshot: Snapshot, operation: Operation, server: Server) -> str:
    answer = snapshot.agents.get(server.id)
    if isinstance(answer, Known):
        return f"the agent's job {answer.value.operation}" if answer.value.operation is not None else ""
    if operation.step in _WORKLOAD_STEPS and server.ctype is ContainerType.GAME:
        return "the agent, which does not say whether a job runs" + (f" ({answer.reason})" if isinstance(answer, Unknown) else "")
    return ""


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    return ""
