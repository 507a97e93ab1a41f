"""Prefect's REST API over httpx: submit, look at and cancel flow runs.

Called by the submitter (``zlh dispatch``), the sweep, the API and ``zlh worker drain``. ``import prefect`` costs a second and 80 MB, so
nothing here does it. Promises: a run is submitted once per key whatever is retried, a filter is read to its end or not believed, and what
this says of a run is information, never proof that it lives. Idempotency keys never expire there: a key must never be needed twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import stamina

from flows.domain.operation import Queue
from flows.domain.sources import EngineRun
from flows.errors import BadAnswer, BadInput, Busy, Conflict, NotFound, RateLimited, Unauthorized, Unproven, Unreachable
from flows.settings import EngineSettings

#: Most rows that the server gives at once, its ``PREFECT_SERVER_API_DEFAULT_LIMIT``.
PAGE = 200
#: Keys in one filter: SQLite's statements take a limited number of variables.
KEYS_PER_FILTER = 100
#: A filter with more pages than this is not ours.
MAX_PAGES = 100

_FINISHED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})
_ACTIVE = ("PENDING", "RUNNING", "CANCELLING")
_REMEDY_AUTH = "set ZLH_ENGINE__AUTH to the server's PREFECT_SERVER_API_AUTH_STRING"
_REMEDY_DEPLOY = "run `zlh up`, or `prefect --no-prompt deploy --all` in the project's directory"
_REMEDY_SETUP = "check ZLH_ENGINE__POOL; `zlh up` makes the work pool"
_REMEDY_DOWN = "check that the Prefect server runs and that ZLH_ENGINE__URL names its API"


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the engine sees it. ``heartbeat_at`` is in milliseconds by the engine's clock, None if it never beat."""

    name: str
    online: bool
    heartbeat_at: int | None


class PrefectEngine:
    """Implements :class:`flows.domain.ports.Engine`. One instance per process and event loop; close it."""

    def __init__(self, settings: EngineSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        user, _, password = settings.auth.get_secret_value().partition(":")
        self._http = httpx.AsyncClient(
            base_url=settings.url.rstrip("/"),
            auth=httpx.BasicAuth(user, password) if user else None,
            timeout=settings.timeout_s,
            transport=transport,
            trust_env=False,
        )
        self._deployments: dict[str, str] = {}

    async def close(self) -> None:
        await self._http.aclose()

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
            "tags": ["zlh", *(f"{name}:{parameters[name]}" for name in ("operation_id",) if name in parameters)],
        }
        what = f"submit {deployment} {key}"
        remembered = deployment in self._deployments
        try:
            return await self._create_run(what, deployment, body)
        except NotFound:
            if not remembered:
                raise
            del self._deployments[deployment]  # deleted and deployed again since: it has a new id
            return await self._create_run(what, deployment, body)

    async def runs(self, keys: Sequence[str]) -> Mapping[str, EngineRun]:
        """Every run known under these keys, in lower-case states. Raises Unproven where the list could not be read to its end."""
        found: dict[str, EngineRun] = {}
        wanted = sorted(set(keys))
        for start in range(0, len(wanted), KEYS_PER_FILTER):
            chunk = wanted[start : start + KEYS_PER_FILTER]
            for row in await self._pages("list runs", {"flow_runs": {"idempotency_key": {"any_": chunk}}}):
                run = _run(row)
                if run.key in found and not found[run.key].finished:
                    continue  # the same key under two deployments: the unfinished one matters
                found[run.key] = run
        return found

    async def active(self, queues: Sequence[str] = tuple(Queue)) -> Sequence[EngineRun]:
        """Runs that a worker of our pool has begun (pending, running, cancelling): what a drain waits for."""
        filters = {
            "flow_runs": {"state": {"type": {"any_": list(_ACTIVE)}}},
            "work_pools": {"name": {"any_": [self._settings.pool]}},
            "work_pool_queues": {"name": {"any_": [str(queue) for queue in queues]}},
        }
        return [_run(row) for row in await self._pages("list active runs", filters)]

    async def cancel(self, run_id: str) -> None:
        """Asks the engine to end a run; one that is over already is left alone. Only a worker that lives kills the process."""
        what = f"cancel run {run_id}"
        answer = await self._call(what, "POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        status = answer.get("status") if isinstance(answer, dict) else None
        if status in ("ACCEPT", "ABORT"):
            return
        row = await self._call(what, "GET", f"/flow_runs/{run_id}")
        if not _run(row).finished:
            raise Conflict(what, why=f"the engine answered {status}", remedy="look at the run in Prefect's UI")

    async def pause(self, paused: bool) -> None:
        """Stops (or resumes) handing out runs to the pool's workers, for a drain. Runs under way go on."""
        await self._call(f"pause pool {self._settings.pool}", "PATCH", f"/work_pools/{self._settings.pool}", {"is_paused": paused})

    async def workers(self) -> Sequence[Worker]:
        """Every worker that ever beat for our pool and was not deleted."""
        path = f"/work_pools/{self._settings.pool}/workers/filter"
        rows = await self._pages("list workers", {}, path)
        return [
            Worker(_text(row, "name"), row.get("status") == "ONLINE", _ms(row["last_heartbeat_time"]) if row.get("last_heartbeat_time") else None)
            for row in rows
        ]

    async def version(self) -> str:
        """The server's version: an authorized answer, so this proves the credential too."""
        answer = await self._call("read version", "GET", "/admin/version")
        if not isinstance(answer, str):
            raise BadAnswer("read version", why=f"answered {type(answer).__name__}")
        return answer

    async def _create_run(self, what: str, deployment: str, body: Mapping[str, object]) -> str:
        if deployment not in self._deployments:
            row = await self._call(what, "GET", f"/deployments/name/{deployment}/{deployment}", missing=f"deployment {deployment}/{deployment}")
            self._deployments[deployment] = _text(row, "id")
        path = f"/deployments/{self._deployments[deployment]}/create_flow_run"
        row = await self._call(what, "POST", path, body, missing=f"deployment {deployment}/{deployment}")
        return _text(row, "id")

    async def _pages(self, what: str, filters: Mapping[str, object], path: str = "/flow_runs/filter") -> list[Mapping[str, Any]]:
        rows: dict[str, Mapping[str, Any]] = {}  # by id: a run created meanwhile shifts the pages, and one row comes twice
        for page in range(MAX_PAGES):
            answer = await self._call(what, "POST", path, {**filters, "limit": PAGE, "offset": page * PAGE})
            if not isinstance(answer, list):
                raise BadAnswer(what, why="the answer is no list")
            rows.update((_text(row, "id"), row) for row in answer)
            if len(answer) < PAGE:
                return list(rows.values())
        raise Unproven(what, why=f"more than {MAX_PAGES * PAGE} rows", remedy="shorten the engine's retention (PREFECT_SERVER_SERVICES_DB_VACUUM_*)")

    async def _call(self, what: str, method: str, path: str, body: object | None = None, *, missing: str = "") -> Any:
        """One call, repeated while the server says that its database is locked: all our writes are idempotent."""
        retries = stamina.retry_context(on=Busy, attempts=8, timeout=self._settings.timeout_s, wait_initial=0.05, wait_max=2.0)
        async for attempt in retries:
            with attempt:
                return await self._once(what, method, path, body, missing)
        raise AssertionError("stamina returns or raises")

    async def _once(self, what: str, method: str, path: str, body: object | None, missing: str) -> Any:
        what = f"engine: {what}"
        try:
            response = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise Unreachable(what, why=f"no answer ({type(error).__name__})", remedy=_REMEDY_DOWN) from error
        status = response.status_code
        if status == httpx.codes.NO_CONTENT:
            return None
        if response.is_success:
            try:
                return response.json()
            except ValueError as error:
                raise BadAnswer(what, why="the answer is not JSON", remedy=_REMEDY_DOWN) from error
        if status in (401, 403):
            raise Unauthorized(what, why=f"the engine refused our credential ({status})", remedy=_REMEDY_AUTH)
        if status == 404:
            raise NotFound(what, why=f"{missing or path} does not exist", remedy=_REMEDY_DEPLOY if missing else _REMEDY_SETUP)
        if status == 503:
            raise Busy(what, why="the engine's database is locked", retry_after=1.0)
        if status == 429:
            raise RateLimited(what, why="too many requests", retry_after=_seconds(response.headers.get("Retry-After")))
        if status in (400, 409, 422):
            raise BadInput("request", what, why=f"the engine refused it ({status}): {_detail(response)}", remedy=_REMEDY_DEPLOY)
        if status >= 500:
            raise Unreachable(what, why=f"the engine failed with {status}", remedy=_REMEDY_DOWN)
        raise BadAnswer(what, why=f"unexpected status {status}", remedy=_REMEDY_DOWN)


def _run(row: object) -> EngineRun:
    if not isinstance(row, Mapping):
        raise BadAnswer("engine: read run", why="a run is no object")
    state = _text(row, "state_type")
    return EngineRun(id=_text(row, "id"), key=str(row.get("idempotency_key") or ""), state=state.lower(), finished=state in _FINISHED)


def _text(row: object, key: str) -> str:
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, str):
        raise BadAnswer("engine: read answer", why=f"{key} is missing", remedy=_REMEDY_DOWN)
    return value


def _ms(text: object) -> int:
    try:
        return int(datetime.fromisoformat(str(text)).timestamp() * 1000)
    except ValueError as error:
        raise BadAnswer("engine: read answer", why="a time is malformed") from error


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _detail(response: httpx.Response) -> str:
    """What the server says of a refused request, cut: it may quote our parameters, which are ids and numbers."""
    try:
        body = response.json()
    except ValueError:
        return response.reason_phrase
    detail = body.get("detail") or body.get("exception_detail") if isinstance(body, dict) else None
    return str(detail or body)[:500]
