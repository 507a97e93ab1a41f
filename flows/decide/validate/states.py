"""States of servers and operations: illegal ones, contradictions between the two, and those older than their limit. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from flows.decide.validate import mend
from flows.decide.validate.identity import problem, row
from flows.domain.operation import LIVE_STATES, AttemptState, OperationKind, OperationState
from flows.domain.records import Limits, OperationRecord, Records, ServerRecord
from flows.domain.server import ServerState
from flows.domain.validation import Problem

_LIVE = frozenset(s.value for s in LIVE_STATES)
_KNOWN = frozenset(s.value for s in OperationState)
#: What a server may be while an operation of a kind lives.
_UNDER = {
    OperationKind.PROVISION.value: frozenset({ServerState.CREATING.value}),
    OperationKind.DELETE.value: frozenset({ServerState.DELETING.value}),
}
_SETTLED = frozenset({ServerState.ACTIVE.value, ServerState.SUSPENDED.value})
#: A transient state, and the operation that moves it on.
_MOVED_BY = {ServerState.CREATING.value: OperationKind.PROVISION.value, ServerState.DELETING.value: OperationKind.DELETE.value}


def problems(records: Records, limits: Limits) -> Iterator[Problem]:
    yield from _values(records)
    yield from _operations(records)
    live: dict[str, list[OperationRecord]] = {}
    for operation in records.operations:
        if operation.state in _LIVE:
            live.setdefault(operation.server_id, []).append(operation)
    for server_id, group in sorted(live.items()):
        if len(group) > 1:
            said = ", ".join(f"{o.kind} {o.id} ({o.state})" for o in group)
            yield problem(
                "two_live_operations",
                (f"servers:{server_id}", *(f"operations:{o.id}" for o in group)),
                f"{len(group)} operations live on one server: {said}",
                f"zlh operations show {group[0].id}; end what should not be: zlh operations cancel {group[-1].id}",
            )
    for server in records.servers:
        yield from _server(server, live.get(server.id, []), records.now, limits)
    for operations in live.values():
        for operation in operations:
            yield from _age(operation, records.now, limits)
    for overdue in records.overdue:
        since = minutes(records.now - overdue.since)
        remedy = "zlh status; zlh doctor: is zlh-dispatch running?" if overdue.table == "outbox" else "zlh reconcile"
        yield problem("state_overdue", (f"{overdue.table}:{overdue.key}",), f"{overdue.what} for {since}", remedy)


def minutes(ms: int) -> str:
    """How long, as people say it."""
    return f"{ms // 60_000} min" if ms < 7_200_000 else f"{ms // 3_600_000} h"


def _values(records: Records) -> Iterator[Problem]:
    for odd in records.odd:
        objects = tuple(f"{odd.table}:{key}" for key in odd.keys)
        says = f"{odd.count} row{'s' if odd.count > 1 else ''} of {odd.table} with {odd.column} {odd.value!r}, which this program does not know"
        remedy = "run the program that wrote it; or " + mend.select(odd.table, f"{odd.column} = {mend.literal(odd.value)}")
        yield problem("illegal_state", objects, says, remedy)


def _operations(records: Records) -> Iterator[Problem]:
    """``live_server`` keeps a second operation away: without it two may live, left behind the server takes no order any more."""
    for o in records.operations:
        if o.state not in _KNOWN:
            continue
        wanted = o.server_id if o.state in _LIVE else None
        if o.live_server != wanted:
            says = f"{o.kind} {o.id} is {o.state} and " + ("holds no server" if wanted else f"still holds server {o.live_server}")
            remedy = mend.update("operations", ("id", o.id), live_server=wanted)
            yield problem("operation_claim", (f"operations:{o.id}", f"servers:{o.server_id}"), says, remedy)
        if (o.state in _LIVE) != (o.finished_at is None):
            says = f"{o.kind} {o.id} is {o.state} and " + ("has an end" if o.finished_at else "has no end")
            end = None if o.state in _LIVE else mend.Expression("progress_at")
            yield problem("illegal_state", (f"operations:{o.id}",), says, mend.update("operations", ("id", o.id), finished_at=end))
        if o.state in _LIVE and o.server_state is not None and o.server_state not in _UNDER.get(o.kind, _SETTLED) and not _undone(o):
            says = f"{o.kind} {o.id} is {o.state} while its server is {o.server_state}"
            yield problem(
                "illegal_state", (f"operations:{o.id}", f"servers:{o.server_id}"), says, f"zlh operations cancel {o.id}; zlh explain {o.server_id}"
            )


def _undone(operation: OperationRecord) -> bool:
    return operation.kind not in set(OperationKind) or operation.server_state not in set(ServerState)


def _server(server: ServerRecord, live: list[OperationRecord], now: int, limits: Limits) -> Iterator[Problem]:
    if server.state == ServerState.DELETED.value and server.deleted_at is None:
        yield problem("illegal_state", (row(server),), f"{server.name} is deleted and has no time of it", _timed(server.id, "deleted_at", now))
    if server.state in _SETTLED and server.activated_at is None and server.state == ServerState.ACTIVE.value:
        yield problem("illegal_state", (row(server),), f"{server.name} is active and was never activated", _timed(server.id, "activated_at", now))
    mover = _MOVED_BY.get(server.state)
    if mover is not None and not any(o.kind == mover for o in live) and not live:
        remedy = (
            f"zlh delete {server.id} --yes"
            if mover == OperationKind.DELETE.value
            else f"zlh operations --server {server.name}; zlh delete {server.id} --yes"
        )
        yield problem("state_overdue", (row(server),), f"{server.name} is {server.state} and no operation lives that would move it on", remedy)
    for operation in live:
        limit = {ServerState.CREATING.value: limits.stuck_ms, ServerState.DELETING.value: limits.operation_ms}.get(server.state)
        if limit is not None and operation.kind == mover and now - operation.progress_at > limit:
            says = f"{server.name} is {server.state} without progress for {minutes(now - operation.progress_at)} (limit {minutes(limit)})"
            yield problem(
                "state_overdue", (row(server), f"operations:{operation.id}"), says, f"zlh operations show {operation.id}; zlh explain {server.name}"
            )


def _timed(server_id: str, column: str, now: int) -> str:
    return mend.update("servers", ("id", server_id), **{column: now})


def _age(o: OperationRecord, now: int, limits: Limits) -> Iterator[Problem]:
    """What the sweep takes up by itself counts only once it had the time to."""
    object_ = (f"operations:{o.id}",)
    if o.state == OperationState.CLEANUP_REQUIRED.value:
        if now - o.progress_at > limits.operation_ms:
            yield problem(
                "state_overdue", object_, f"{o.kind} {o.id} waits for its clean-up for {minutes(now - o.progress_at)}", f"zlh operations retry {o.id}"
            )
        return
    if now - o.deadline_at > limits.stuck_ms:
        says = f"{o.kind} {o.id} is {o.state}, {minutes(now - o.deadline_at)} after its deadline"
        yield problem("state_overdue", object_, says, f"zlh operations show {o.id}; zlh findings")
    elif o.server_state not in _MOVED_BY and now - o.progress_at > limits.stuck_ms and o.attempt_state == AttemptState.CLAIMED.value:
        says = f"{o.kind} {o.id} is {o.state} without progress for {minutes(now - o.progress_at)}"
        yield problem("state_overdue", object_, says, f"zlh operations follow {o.id}")
