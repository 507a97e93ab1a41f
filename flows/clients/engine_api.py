"""One call to Prefect's REST API, with its failures translated. Used by the engine client and by the engine's set-up alone."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from typing import Any

import httpx

from flows.errors import BadAnswer, BadInput, Busy, NotFound, RateLimited, Unauthorized, Unproven, Unreachable
from flows.settings import EngineSettings

#: Most rows that the server gives at once, its ``PREFECT_SERVER_API_DEFAULT_LIMIT``.
PAGE = 200
#: A filter with more pages than this is not ours.
MAX_PAGES = 100

REMEDY_DEPLOY = "run `zlh up`, or `prefect --no-prompt deploy --all` in the project's directory"
_REMEDY_AUTH = "set ZLH_ENGINE__AUTH to the server's PREFECT_SERVER_API_AUTH_STRING"
_REMEDY_SETUP = "check ZLH_ENGINE__POOL; `zlh up` makes the work pool"
_REMEDY_DOWN = "check that the Prefect server runs and that ZLH_ENGINE__URL names its API"


class PrefectApi:
    """Repeats what the server refused because its database was locked: all our writes are idempotent. Nothing else is repeated."""

    def __init__(self, settings: EngineSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        user, _, password = settings.auth.get_secret_value().partition(":")
        self._timeout_s = settings.timeout_s
        self._http = httpx.AsyncClient(
            base_url=settings.url.rstrip("/"),
            auth=httpx.BasicAuth(user, password) if user else None,
            timeout=settings.timeout_s,
            transport=transport,
            trust_env=False,
            # A connection per request: the server closes one after a 503 (and after 5 s) without saying so, and what is sent then is lost.
            limits=httpx.Limits(max_connections=20, max_keepalive_connections=0),
        )
        self._writing = asyncio.Lock()  # of several at once SQLite refuses all but one

    async def close(self) -> None:
        await self._http.aclose()

    async def call(self, what: str, method: str, path: str, body: object | None = None, *, missing: str = "") -> Any:
        """The decoded answer, None for an empty one. ``missing`` names the deployment that a 404 means.

        Raises Unreachable, Busy, RateLimited, Unauthorized, NotFound, BadInput (the server refused the request) or BadAnswer.
        """
        async with self._writing if method != "GET" else contextlib.nullcontext():
            end, pause = time.monotonic() + self._timeout_s, 0.05
            while True:
                try:
                    return await self._once(f"engine: {what}", method, path, body, missing)
                except Busy:
                    # A plain loop: with SQLite this is every-day life, and a library would log each round.
                    if time.monotonic() + pause > end:
                        raise
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause = min(2 * pause, 1.0)

    async def pages(self, what: str, path: str, filters: Mapping[str, object]) -> list[Mapping[str, Any]]:
        """Every row of a filter. Raises Unproven where it has no end."""
        rows: dict[str, Mapping[str, Any]] = {}  # by id: a run created meanwhile shifts the pages, and one row comes twice
        for page in range(MAX_PAGES):
            answer = await self.call(what, "POST", path, {**filters, "limit": PAGE, "offset": page * PAGE})
            if not isinstance(answer, list):
                raise BadAnswer(what, why="the answer is no list")
            rows.update((text(row, "id"), row) for row in answer)
            if len(answer) < PAGE:
                return list(rows.values())
        raise Unproven(what, why=f"more than {MAX_PAGES * PAGE} rows", remedy="shorten the engine's retention (PREFECT_SERVER_SERVICES_DB_VACUUM_*)")

    async def _once(self, what: str, method: str, path: str, body: object | None, missing: str) -> Any:
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
            raise NotFound(what, why=f"{missing or path} does not exist", remedy=REMEDY_DEPLOY if missing else _REMEDY_SETUP)
        if status == 503:
            raise Busy(what, why="the engine's database is locked", retry_after=1.0)
        if status == 429:
            raise RateLimited(what, why="too many requests", retry_after=_seconds(response.headers.get("Retry-After")))
        if status in (400, 409, 422):
            raise BadInput("request", what, why=f"the engine refused it ({status}): {_detail(response)}", remedy=REMEDY_DEPLOY)
        if status >= 500:
            raise Unreachable(what, why=f"the engine failed with {status}", remedy=_REMEDY_DOWN)
        raise BadAnswer(what, why=f"unexpected status {status}", remedy=_REMEDY_DOWN)


def text(row: object, key: str) -> str:
    """A string that the answer must hold. Raises BadAnswer."""
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, str):
        raise BadAnswer("engine: read answer", why=f"{key} is missing", remedy=_REMEDY_DOWN)
    return value


def _seconds(header: str | None) -> float | None:
    try:
        return float(header) if header else None
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
