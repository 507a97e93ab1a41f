"""Rows as customers see them: one shape each, times as RFC 3339 in UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flows.domain.lease import LeaseKind
from flows.domain.operation import Direction, Operation, OperationKind, OperationState, StepRow, StepState, steps_of
from flows.domain.readiness import FRESH_MS, may_publish, may_withdraw
from flows.domain.server import ContainerType, Server
from flows.state.server_views import KnownServer

View = dict[str, object]


def time_of(ms: int | None) -> str | None:
    if ms is None:
        return None
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}Z"


@dataclass(frozen=True, slots=True)
class Players:
    """Where players connect: a name under ``zone``, at the proxy's port."""

    zone: str
    port: int

    def address_of(self, server: Server) -> str | None:
        """None for developer containers, which publish nothing of their own."""
        if server.ctype is not ContainerType.GAME:
            return None
        return f"{server.name}.{self.zone}" + ("" if self.port == 25565 else f":{self.port}")


def server_view(server: Server, players: Players) -> View:
    """``address`` is where players connect, under the proxy's name; never the container's own."""
    view: View = {
        "id": server.id,
        "name": server.name,
        "ctype": server.ctype.value,
        "flavor": server.flavor,
        "version": server.version,
        "memory_mb": server.memory_mb,
        "cores": server.cores,
        "disk_gb": server.disk_gb,
        "state": server.state.value,
        "desired": server.desired.value,
        "address": players.address_of(server),
        "created_at": time_of(server.created_at),
        "activated_at": time_of(server.activated_at),
        "url": f"/api/servers/{server.id}",
    }
    if server.ctype is ContainerType.DEV:
        view["runtimes"] = [{"name": r.name, "version": r.version} for r in server.runtimes]
        view["enable_code_server"] = server.code_server
    return view


def full_view(known: KnownServer, now: int, players: Players) -> View:
    """A server with its status: what lists and looks show."""
    return server_view(known.server, players) | status_view(known, now, players)


def status_view(known_server: KnownServer, now: int, players: Players) -> View:
    """The database plus the last observation. ``agent`` is ``ok``, ``unreachable``, or ``unknown`` where nothing fresh is known;
    ``ready`` is null where neither yes nor no is proven."""
    server, seen, live, lease = known_server.server, known_server.seen, known_server.live, known_server.lease
    fresh = seen is not None and now - seen.at <= FRESH_MS
    agent = "unknown" if seen is None or not fresh else "ok" if seen.reachable else "unreachable"
    known = seen if seen is not None and agent == "ok" else None
    return {
        "id": server.id,
        "name": server.name,
        "state": server.state.value,
        "desired": server.desired.value,
        "workload": known.state.value if known and known.state else None,
        "ready": True if may_publish(seen, now) else False if may_withdraw(seen, now) else None,
        "agent": agent,
        "operation": None if live is None else brief(live),
        "maintenance": lease is not None and lease.kind is LeaseKind.MAINTENANCE and not lease.expired(now),
        "players": known.players if known else None,
        "last_crash": dict(seen.last_crash) if seen and seen.last_crash else None,
        "provisioning_complete": known.provisioning_complete if known else None,
        "address": players.address_of(server),
        "observed_at": time_of(seen.at) if seen else None,
    }


def brief(operation: Operation) -> View:
    return {
        "id": operation.id,
        "kind": operation.kind.value,
        "state": operation.state.value,
        "step": operation.step.value if operation.step else None,
        "url": f"/api/operations/{operation.id}",
    }


def operation_view(operation: Operation, ctype: ContainerType, rows: Sequence[StepRow], *, whole_error: bool = False) -> View:
    """``progress`` counts steps done and still standing; ``next`` says what happens, or what the customer can do.
    ``whole_error`` is for the operator."""
    steps = [_step(name.value, [r for r in rows if r.step is name]) for name in steps_of(operation.kind, ctype)]
    shown = operation.error if operation.state not in (OperationState.QUEUED, OperationState.RUNNING, OperationState.SUCCEEDED) else None
    succeeded = operation.state is OperationState.SUCCEEDED
    return brief(operation) | {
        "server_id": operation.server_id,
        "steps": steps,
        "progress": {"done": len(steps) if succeeded else sum(s["state"] == "done" for s in steps), "total": len(steps)},
        "attempt": operation.attempt,
        "cancel_requested": operation.cancel_requested,
        "created_at": time_of(operation.created_at),
        "started_at": time_of(operation.started_at),
        "finished_at": time_of(operation.finished_at),
        "error": dict(shown) if shown and whole_error else _error(shown, operation, rows),
        "next": _next(operation),
    }


def _step(name: str, rows: Sequence[StepRow]) -> View:
    """A step that was undone, or is being undone, says so instead of ``done``."""
    row = max(rows, key=lambda r: (r.direction is Direction.UNDO, r.started_at), default=None)
    if row is None:
        return {"name": name, "state": "pending", "started_at": None, "finished_at": None}
    words = {StepState.STARTED: "running", StepState.DONE: "done", StepState.FAILED: "failed"}
    if row.direction is Direction.UNDO:
        words = {StepState.STARTED: "undoing", StepState.DONE: "undone", StepState.FAILED: "undo_failed"}
    return {"name": name, "state": words[row.state], "started_at": time_of(row.started_at), "finished_at": time_of(row.finished_at)}


def _error(error: Mapping[str, str] | None, operation: Operation, rows: Sequence[StepRow]) -> View | None:
    """What failed, for its owner: the step and the kind of error. Its words are the operator's: they name hosts, tasks and paths."""
    if not error:
        return None
    failed = [row for row in rows if row.state is StepState.FAILED]
    step = max(failed, key=lambda row: row.started_at).step if failed else operation.step
    return {"what": step.value if step else operation.kind.value, "type": error.get("type", "")}


def _next(operation: Operation) -> str:
    cancel, retry = f"POST /api/operations/{operation.id}/cancel", f"POST /api/operations/{operation.id}/retry"
    stop = f"; {cancel} takes it back" if operation.kind is OperationKind.PROVISION and not operation.cancel_requested else ""
    match operation.state:
        case OperationState.QUEUED:
            return "is undone as soon as its turn comes" if operation.cancel_requested else f"waits for its turn{stop}"
        case OperationState.RUNNING:
            return "is being stopped" if operation.cancel_requested else f"carries on with its steps{stop}"
        case OperationState.CANCELLING | OperationState.COMPENSATING:
            return "undoes what was done"
        case OperationState.CLEANUP_REQUIRED:
            return "tries again by itself; the operator is told if that does not help"
        case OperationState.FAILED:
            return f"nothing is left behind; {retry} tries again" if operation.kind is OperationKind.PROVISION else f"{retry} tries again"
        case _:
            return "nothing: it is over"
