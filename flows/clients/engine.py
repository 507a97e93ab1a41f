"""Prefect as the rest of the program sees it: submit, look at and cancel flow runs.

Called by the submitter (``zlh dispatch``), the sweep, the API and ``zlh worker drain``. ``import prefect`` costs a second and 80 MB, so
nothing here does it. Promises: a run is submitted once per key whatever is retried, a filter is read to its end or not believed, and what
this says of a run is information, never proof that it lives. Idempotency keys never expire there: a key must never be needed twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import httpx

from flows.clients.engine_api import PrefectApi, text
from flows.domain.operation import Queue
from flows.domain.sources import EngineRun
from flows.errors import BadAnswer, BadInput, Conflict, NotFound
from flows.settings import EngineSettings

#: Keys in one filter: SQLite's statements take a limited number of variables.
KEYS_PER_FILTER = 100

_FINISHED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})
_ACTIVE = ("PENDING", "RUNNING", "CANCELLING")


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the engine sees it. ``heartbeat_at`` is in milliseconds by the engine's clock, None if it never beat."""

    name: str
    online: bool
    heartbeat_at: int | None


@dataclass(frozen=True, slots=True)
class Said:
    """A line of a run's log. ``at`` as the engine writes times, to be given back to it."""

    id: str
    at: str
    text: str


class PrefectEngine:
    """Implements :class:`flows.domain.ports.Engine`. One instance per process and event loop; close it."""

    def __init__(self, settings: EngineSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._pool = settings.pool
        self._api = PrefectApi(settings, transport=transport)
        self._deployments: dict[str, str] = {}

    async def close(self) -> None:
        await self._api.close()

    async def submit(self, deployment: str, key: str, parameters: Mapping[str, object], queue: str) -> str:
        """Starts a flow run once per ``key`` and returns its id; with a key used before, the id of that run.

        Raises Unreachable (the engine may still have it: submit again with the same key), NotFound where the deployment is missing,
        BadInput where its parameter schema refuses ``parameters`` or the queue is none of ours.
        """
        if queue not in set(Queue):  # the server would create an unknown queue, without limits and without a worker
            raise BadInput("queue", queue, why=f"is none of {', '.join(Queue)}")
        body = {
            "name": f"{deployment} {key}",
            "idempotency_key": key,
            "parameters": dict(parameters),
            "work_queue_name": str(queue),
            "tags": ["zlh", *(f"operation:{parameters[name]}" for name in ("operation_id",) if name in parameters)],
        }
        remembered = deployment in self._deployments
        try:
            return await self._create_run(deployment, key, body)
        except NotFound:
            if not remembered:
                raise
            del self._deployments[deployment]  # deleted and deployed again since: it has a new id
            return await self._create_run(deployment, key, body)

    async def runs(self, keys: Sequence[str]) -> Mapping[str, EngineRun]:
        """Every run known under these keys, in lower-case states. Raises Unproven where the list could not be read to its end."""
        found: dict[str, EngineRun] = {}
        wanted = sorted(set(keys))
        for start in range(0, len(wanted), KEYS_PER_FILTER):
            chunk = wanted[start : start + KEYS_PER_FILTER]
            for row in await self._api.pages("list runs", "/flow_runs/filter", {"flow_runs": {"idempotency_key": {"any_": chunk}}}):
                run = _run(row)
                if run.key in found and not found[run.key].finished:
                    continue  # the same key under two deployments: the unfinished one matters
                found[run.key] = run
        return found

    async def active(self, queues: Sequence[str] = tuple(Queue)) -> Sequence[EngineRun]:
        """Runs that a worker of our pool has begun (pending, running, cancelling): what a drain waits for."""
        filters = {
            "flow_runs": {"state": {"type": {"any_": list(_ACTIVE)}}},
            "work_pools": {"name": {"any_": [self._pool]}},
            "work_pool_queues": {"name": {"any_": [str(queue) for queue in queues]}},
        }
        return [_run(row) for row in await self._api.pages("list active runs", "/flow_runs/filter", filters)]

    async def cancel(self, run_id: str) -> None:
        """Asks the engine to end a run; one that is over already is left alone. Only a worker that lives kills the process."""
        what = f"cancel run {run_id}"
        answer = await self._api.call(what, "POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        if text(answer, "status") == "ACCEPT":
            return
        run = _run(await self._api.call(what, "GET", f"/flow_runs/{run_id}"))
        if not run.finished:
            raise Conflict(what, why=f"the engine answered {text(answer, 'status')}", remedy="look at the run in Prefect's UI")

    async def give_up(self, run_id: str, reason: str) -> None:
        """Declares a run crashed whatever the engine believes, which frees its queue's slot. Ends no process: only for runs that are fenced."""
        state = {"type": "CRASHED", "name": "Crashed", "message": reason}
        await self._api.call(f"give up run {run_id}", "POST", f"/flow_runs/{run_id}/set_state", {"state": state, "force": True})

    async def pause(self, paused: bool) -> None:
        """Stops (or resumes) handing out runs to the pool's workers, for a drain. Runs under way go on."""
        await self._api.call(f"pause pool {self._pool}", "PATCH", f"/work_pools/{self._pool}", {"is_paused": paused})

    async def workers(self) -> Sequence[Worker]:
        """Every worker that ever beat for our pool and was not deleted."""
        rows = await self._api.pages("list workers", f"/work_pools/{self._pool}/workers/filter", {})
        return [Worker(text(row, "name"), row.get("status") == "ONLINE", _ms(row.get("last_heartbeat_time"))) for row in rows]

    async def tasks_said(self, run_id: str, after: str | None = None) -> Sequence[Said]:
        """Which tasks of playbooks the run has begun, in order, from just after ``after`` (a line's ``at``) on. Lines come some seconds late
        and in batches: who wants none to be missed asks from a little earlier, and knows a line again by its id."""
        wanted: dict[str, object] = {"flow_run_id": {"any_": [run_id]}}
        if after is not None:
            wanted["timestamp"] = {"after_": after}
        rows = await self._api.pages("read log", "/logs/filter", {"logs": wanted, "sort": "TIMESTAMP_ASC"})
        lines = [Said(text(row, "id"), text(row, "timestamp"), text(row, "message")) for row in rows]
        return [line for line in lines if line.text.startswith("TASK ")]

    async def version(self) -> str:
        """The server's version: an authorized answer, so this proves the credential too."""
        answer = await self._api.call("read version", "GET", "/admin/version")
        if not isinstance(answer, str):
            raise BadAnswer("engine: read version", why=f"answered {type(answer).__name__}")
        return answer

    async def _create_run(self, deployment: str, key: str, body: Mapping[str, object]) -> str:
        what, missing = f"submit {deployment} {key}", f"deployment {deployment}/{deployment}"
        if deployment not in self._deployments:
            row = await self._api.call(what, "GET", f"/deployments/name/{deployment}/{deployment}", missing=missing)
            self._deployments[deployment] = text(row, "id")
        path = f"/deployments/{self._deployments[deployment]}/create_flow_run"
        return text(await self._api.call(what, "POST", path, body, missing=missing), "id")


def _run(row: object) -> EngineRun:
    state = text(row, "state_type")
    key = row.get("idempotency_key") if isinstance(row, Mapping) else None
    return EngineRun(id=text(row, "id"), key=str(key or ""), state=state.lower(), finished=state in _FINISHED)


def _ms(value: object) -> int | None:
    if value is None:
        return None
    try:
        return int(datetime.fromisoformat(str(value)).timestamp() * 1000)
    except ValueError as error:
        raise BadAnswer("engine: read answer", why="a time is malformed") from error
