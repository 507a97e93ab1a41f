"""Orders about servers that exist: start, stop, restart, delete, deploy; and about operations: cancel, retry. One transaction each.

Called by the customer API in ``Database.write()``. The server's row is locked first (for a retry the customer's before it, as in
:mod:`flows.state.intake`). A repeat of what already is or runs gets the same operation. Refusals are Conflicts with a kind:
``operation_live`` and ``lease_held`` name what holds the server, ``billing``, ``wrong_state``, ``not_cancellable``, ``not_retryable``.
"""

from __future__ import annotations

from sqlalchemy import delete as sql_delete
from sqlalchemy import select

from flows.domain.agent import Observation, WorkloadState
from flows.domain.intake import Ordered, Ranges
from flows.domain.lease import LeaseKind
from flows.domain.operation import LIVE_STATES, Operation, OperationKind, OperationState, Queue
from flows.domain.readiness import FRESH_MS
from flows.domain.server import MAY_RUN, Desired, Edge, Server, ServerState
from flows.errors import Busy, Conflict, NotFound
from flows.state import attempts, audit, customers, leases, observations, operations, servers
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.episodes import ACTOR
from flows.state.intake import Place, locked_customer, reserve_again

_K = OperationKind
_DESIRED = {_K.START: Desired.RUNNING, _K.RESTART: Desired.RUNNING, _K.STOP: Desired.STOPPED}
#: After these the workload runs, which the account must allow.
_RUNS = frozenset({_K.START, _K.RESTART})
#: What a finished operation proves of the workload until something newer is seen.
_LEAVES = {_K.PROVISION: Desired.RUNNING, _K.START: Desired.RUNNING, _K.RESTART: Desired.RUNNING, _K.STOP: Desired.STOPPED}
_SEEN = {WorkloadState.RUNNING: Desired.RUNNING, WorkloadState.STARTING: Desired.RUNNING, WorkloadState.STOPPED: Desired.STOPPED}
#: Leases during which an order must not even wait: they last, or a person set them. A repair's lasts seconds and its order waits.
_REFUSED_UNDER = frozenset({LeaseKind.BACKUP, LeaseKind.RESTORE, LeaseKind.PATCH, LeaseKind.MAINTENANCE})


async def control(tx: Tx, server_id: str, kind: OperationKind, actor: str, *, deadline_ms: int) -> Ordered:
    """Start, stop, restart, or a deployment of the agent, which changes nothing of what is desired. Raises NotFound, Conflict."""
    server = await _locked(tx, server_id)
    if kind in _RUNS:
        await _may_run(tx, server)
    live = await operations.live_of(tx, server.id)
    if live is not None and live.kind is kind:
        return Ordered(server, live, deduplicated=True)
    if live is None and server.state not in (ServerState.ACTIVE, ServerState.SUSPENDED):
        raise _wrong_state(server, kind.value)
    if live is None:
        await _refuse_under_lease(tx, server)
        done = await _already(tx, server, kind)
        if done is not None:
            return done
        if kind in _DESIRED:
            await servers.set_desired(tx, server.id, _DESIRED[kind], actor)
        if kind is _K.STOP:
            await servers.set_edge(tx, server.id, Edge.WITHDRAWN)
    return await _order(tx, server, kind, actor, deadline_ms)


async def repair(tx: Tx, server_id: str, kind: OperationKind, *, deadline_ms: int) -> Operation:
    """A start, restart or restart of the agent that the controller orders, on the queue ``repairs``. It changes nothing of what is desired,
    and is refused where a person or a customer's standing says otherwise since. Raises NotFound, Conflict, Busy under any lease."""
    server = await _locked(tx, server_id)
    if kind in _RUNS:
        await _may_run(tx, server)
        if server.desired is not Desired.RUNNING:
            raise Conflict(f"server {server.name}", why=f"{server.desired_by} wants it {server.desired}", kind="not_desired")
    if server.state not in (ServerState.ACTIVE, ServerState.SUSPENDED):
        raise _wrong_state(server, kind.value)
    lease = await leases.get(tx, server.id)
    if lease is not None and lease.blocks(tx.now):
        raise Busy(f"lease of {server.name}", why=f"{lease.holder} holds it: {lease.kind}")
    return await operations.create(tx, server=server, kind=kind, queue=Queue.REPAIRS, actor=ACTOR, params={}, deadline_ms=deadline_ms)


async def delete(tx: Tx, server_id: str, actor: str, *, deadline_ms: int) -> Ordered:
    """Deletes; while creating, cancels and compensates; a cleanly failed one has nothing left to undo. Raises NotFound, Conflict."""
    server = await _locked(tx, server_id)
    if server.state is ServerState.DELETED:
        last = await operations.list_(tx, server_id=server.id, limit=1)
        return Ordered(server, last[0] if last else None, deduplicated=True)
    live = await operations.live_of(tx, server.id)
    if live is not None and live.kind is _K.DELETE:
        return Ordered(server, live, deduplicated=True)
    if live is not None and live.kind is _K.PROVISION:
        await servers.set_desired(tx, server.id, Desired.STOPPED, actor)
        asked = await operations.request_cancel(tx, live.id, actor)
        return Ordered(await _present(tx, server.id), await operations.get(tx, live.id), deduplicated=not asked)
    if live is None and server.state is ServerState.FAILED:
        await servers.mark_deleted(tx, server.id, actor)
        return Ordered(await _present(tx, server.id), None)
    if live is None and server.state is ServerState.CREATING:
        raise _wrong_state(server, "delete")
    if live is None:
        await _refuse_under_lease(tx, server)
        if server.state is not ServerState.DELETING:
            await servers.set_state(tx, server.id, ServerState.DELETING, actor)
        await servers.set_desired(tx, server.id, Desired.STOPPED, actor)
        await servers.set_edge(tx, server.id, Edge.WITHDRAWN)
    return await _order(tx, server, _K.DELETE, actor, deadline_ms)


async def cancel(tx: Tx, operation_id: str, actor: str) -> Ordered:
    """Asks a creation to stop and to undo itself, any time before activation. Raises NotFound, Conflict."""
    operation = await operations.get(tx, operation_id)
    if operation is None:
        raise NotFound(f"operation {operation_id}")
    server = await _locked(tx, operation.server_id)
    operation = await operations.get(tx, operation_id)
    assert operation is not None
    if operation.state is OperationState.CANCELLED or (operation.cancel_requested and operation.state in LIVE_STATES):
        return Ordered(server, operation, deduplicated=True)
    if operation.kind is not _K.PROVISION or operation.state not in LIVE_STATES:
        why = f"it is {operation.state}" if operation.state not in LIVE_STATES else f"a {operation.kind} cannot be taken back"
        facts = {"operation_id": operation.id, "kind": operation.kind.value, "state": operation.state.value}
        raise Conflict(f"operation {operation.id}", why=why, kind="not_cancellable", facts=facts)
    await operations.request_cancel(tx, operation.id, actor)
    return Ordered(server, await operations.get(tx, operation.id))


async def retry(tx: Tx, operation_id: str, actor: str, *, place: Place, ranges: Ranges, cleanup: bool = False) -> Ordered:
    """Queues a failed and cleaned-up operation once more, with a new attempt; a creation gets a new place, VMID and address, under the
    rules of any creation. With ``cleanup`` (operators alone) one that waits for its clean-up cleans up again, at once.
    Raises NotFound, Conflict."""
    operation = await operations.get(tx, operation_id)
    if operation is None:
        raise NotFound(f"operation {operation_id}")
    known = await _present(tx, operation.server_id)
    if operation.kind is _K.PROVISION:
        await locked_customer(tx, known.customer_id)
    server = await _locked(tx, operation.server_id)
    newest = (await operations.list_(tx, server_id=server.id, limit=1))[0]
    if cleanup and newest.id == operation_id and newest.state is OperationState.CLEANUP_REQUIRED:
        return await _clean_again(tx, server, newest, actor, ranges.operation_ms)
    if newest.id != operation_id or newest.state is not OperationState.FAILED:
        why = f"it is {newest.state}" if newest.id == operation_id else f"{newest.kind} {newest.id} came after it"
        facts = {"operation_id": newest.id, "kind": newest.kind.value, "state": newest.state.value}
        raise Conflict(
            f"operation {operation_id}", why=why, remedy="only the newest, failed and clean, can be tried again", kind="not_retryable", facts=facts
        )
    if operation.kind is _K.PROVISION:
        if server.state is not ServerState.FAILED:
            raise _wrong_state(server, "retry")
        await reserve_again(tx, server, place=place, ranges=ranges)
        await servers.set_state(tx, server.id, ServerState.CREATING, actor)
        await servers.set_desired(tx, server.id, Desired.RUNNING, actor)
    else:
        if operation.kind in _RUNS:
            await _may_run(tx, server)
        await _refuse_under_lease(tx, server)
        if operation.kind in _DESIRED:
            await servers.set_desired(tx, server.id, _DESIRED[operation.kind], actor)
    await operations.set_state(tx, operation_id, OperationState.QUEUED, actor=actor, deadline_ms=ranges.operation_ms)
    await operations.set_step(tx, operation_id, None, None)
    # Every step begins anew: the journal of what was undone would keep each of them from running.
    await tx.execute(sql_delete(t.journal).where(t.journal.c.operation_id == operation_id))
    await attempts.next_attempt(tx, operation_id)
    await audit.append(tx, actor, "operation.retry", f"operation:{operation_id}", server_id=server.id, operation_id=operation_id)
    return Ordered(await _present(tx, server.id), await operations.get(tx, operation_id))


async def _clean_again(tx: Tx, server: Server, operation: Operation, actor: str, deadline_ms: int) -> Ordered:
    """What the sweep does with back-off, ordered by a person."""
    await attempts.clean_up_again(tx, operation, deadline_ms=deadline_ms, actor=actor)
    await audit.append(tx, actor, "operation.cleanup", f"operation:{operation.id}", server_id=server.id, operation_id=operation.id)
    return Ordered(server, await operations.get(tx, operation.id))


async def _order(tx: Tx, server: Server, kind: OperationKind, actor: str, deadline_ms: int) -> Ordered:
    """Raises Conflict ``operation_live`` naming what holds the server."""
    operation = await operations.create(tx, server=server, kind=kind, queue=Queue.OPERATIONS, actor=actor, params={}, deadline_ms=deadline_ms)
    await audit.append(tx, actor, f"server.{kind.value}", f"server:{server.id}", server_id=server.id, operation_id=operation.id)
    return Ordered(await _present(tx, server.id), operation)


async def _locked(tx: Tx, server_id: str) -> Server:
    await tx.execute(select(t.servers.c.id).where(t.servers.c.id == server_id).with_for_update())
    return await _present(tx, server_id)


async def _present(tx: Tx, server_id: str) -> Server:
    server = await servers.get(tx, server_id)
    if server is None:
        raise NotFound(f"server {server_id}")
    return server


async def _may_run(tx: Tx, server: Server) -> None:
    customer = await customers.get(tx, server.customer_id)
    assert customer is not None  # a foreign key
    if customer.billing not in MAY_RUN or server.state is ServerState.SUSPENDED:
        state = customer.billing.value if customer.billing not in MAY_RUN else server.state.value
        raise Conflict(
            "billing", why=f"the account is {state}", remedy="settle the account", kind="billing", facts={"billing": customer.billing.value}
        )


async def _refuse_under_lease(tx: Tx, server: Server) -> None:
    lease = await leases.get(tx, server.id)
    if lease is None or lease.kind not in _REFUSED_UNDER or not lease.blocks(tx.now):
        return
    facts: dict[str, object] = {"lease": lease.kind.value, "reason": lease.reason, "until": lease.expires_at}
    if lease.operation_id is not None:
        facts["operation_id"] = lease.operation_id
    raise Conflict(f"server {server.name}", why=f"a {lease.kind} holds it", remedy="wait until it is over", kind="lease_held", facts=facts)


async def _already(tx: Tx, server: Server, kind: OperationKind) -> Ordered | None:
    """The last operation, if what it left is what is wanted and nothing newer says otherwise. A restart or deployment is always wanted."""
    if kind is _K.RESTART or kind not in _DESIRED or server.desired is not _DESIRED[kind]:
        return None
    last = await operations.list_(tx, server_id=server.id, limit=1)
    if not last or last[0].state is not OperationState.SUCCEEDED or _LEAVES.get(last[0].kind) is not _DESIRED[kind]:
        return None
    return Ordered(server, last[0], deduplicated=True) if _holds(await observations.get(tx, server.id), last[0], tx.now) else None


def _holds(seen: Observation | None, last: Operation, now: int) -> bool:
    """Whether the workload is still as its last operation left it: by a fresh observation since, or because that end itself is fresh."""
    ended = last.finished_at or 0
    if seen is None or seen.at < ended:
        return now - ended <= FRESH_MS
    return seen.reachable and seen.state is not None and now - seen.at <= FRESH_MS and _SEEN.get(seen.state) is _LEAVES[last.kind]


def _wrong_state(server: Server, what: str) -> Conflict:
    return Conflict(
        f"server {server.name}", why=f"it is {server.state}: no {what} is possible", kind="wrong_state", facts={"state": server.state.value}
    )
