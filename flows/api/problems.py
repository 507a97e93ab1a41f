"""Errors as RFC 9457 problem documents. ``type`` is stable: programs compare it, people read ``title`` and ``detail``.

Every type is ``urn:zlh:problem:<name>``, with its status and the members it adds:

=====================  ======  =====================================================================
name                   status  members
=====================  ======  =====================================================================
``unauthenticated``    401
``forbidden``          403
``billing``            402     ``billing``
``not_found``          404
``method_not_allowed`` 405
``name_taken``         409     ``name``
``nonce_reused``       409     ``operation_id``: the order that owns the nonce
``server_held``        409     ``operation_id``, ``kind``, ``state`` of an operation, or ``lease``, ``reason``
``wrong_state``        409     ``state``
``not_cancellable``    409     ``operation_id``, ``kind``, ``state``
``not_retryable``      409     ``operation_id``, ``kind``, ``state`` of the newest operation
``conflict``           409     something changed meanwhile; look and ask again
``body_too_large``     413     ``limit`` in bytes
``invalid_field``      422     ``errors``: a list of ``{"field", "detail"}``
``quota``              429     ``plan``, ``resource``, ``used``, ``limit``, ``requested``
``rate_limited``       429     ``Retry-After``
``internal``           500
``bad_gateway``        502     a component refused us or answered nonsense: it is in the operator's log
``no_capacity``        503     ``Retry-After``; nothing was recorded
``intake_closed``      503     ``Retry-After``; nothing was recorded
``unavailable``        503     ``Retry-After``; nothing was recorded unless an earlier answer said so
``timeout``            504
=====================  ======  =====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from flows.errors import (
    AutomationError,
    BadAnswer,
    BadInput,
    Busy,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    NotFound,
    RateLimited,
    Temporary,
    Unauthorized,
)

log = structlog.get_logger(__name__)

PREFIX = "urn:zlh:problem:"
TITLES: Mapping[str, tuple[int, str]] = {
    "unauthenticated": (401, "No valid token"),
    "billing": (402, "The account's billing state does not allow it"),
    "forbidden": (403, "Not allowed with this token"),
    "not_found": (404, "Not found"),
    "method_not_allowed": (405, "Method not allowed"),
    "name_taken": (409, "The name is taken"),
    "nonce_reused": (409, "The nonce belongs to another order"),
    "server_held": (409, "Something else holds the server"),
    "wrong_state": (409, "The server's state does not allow it"),
    "not_cancellable": (409, "The operation cannot be cancelled"),
    "not_retryable": (409, "The operation cannot be tried again"),
    "conflict": (409, "It changed meanwhile"),
    "body_too_large": (413, "The request's body is too large"),
    "invalid_field": (422, "Invalid input"),
    "quota": (429, "The plan's quota is reached"),
    "rate_limited": (429, "Too many requests"),
    "internal": (500, "Internal error"),
    "bad_gateway": (502, "A component gave no trustworthy answer"),
    "no_capacity": (503, "No capacity at the moment"),
    "intake_closed": (503, "No orders are taken at the moment"),
    "unavailable": (503, "Temporarily unavailable"),
    "timeout": (504, "A component did not answer in time"),
}
#: Conflict kinds of the state layer under the name that customers know.
_KINDS = {"nonce_used": "nonce_reused", "operation_live": "server_held", "lease_held": "server_held", "illegal_transition": "wrong_state"}
#: Seconds after which trying again makes sense, where nobody said.
RETRY_AFTER_S = {"no_capacity": 60.0, "intake_closed": 60.0, "unavailable": 5.0}
#: Kinds whose facts the customer may read.
_OPEN = frozenset({"billing", "name_taken", "nonce_reused", "server_held", "wrong_state", "not_cancellable", "not_retryable", "quota"})
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MEDIA = "application/problem+json"


class Problem(Exception):
    """Raised by routes and dependencies; becomes the answer."""

    def __init__(self, name: str, detail: str = "", *, retry_after_s: float | None = None, members: Mapping[str, object] | None = None) -> None:
        super().__init__(name, detail)
        self.name, self.detail, self.members = name, detail, dict(members or {})
        self.retry_after_s = retry_after_s if retry_after_s is not None else RETRY_AFTER_S.get(name)

    @property
    def status(self) -> int:
        return TITLES[self.name][0]

    def document(self) -> dict[str, object]:
        status, title = TITLES[self.name]
        document: dict[str, object] = {"type": PREFIX + self.name, "title": title, "status": status}
        if self.detail:
            document["detail"] = self.detail
        return document | self.members

    def headers(self) -> dict[str, str]:
        headers = {"Cache-Control": "no-store"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.name == "unauthenticated":
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def response(self) -> JSONResponse:
        return JSONResponse(self.document(), self.status, self.headers(), MEDIA)


def invalid(errors: Sequence[tuple[str, str]]) -> Problem:
    """422 with every ``(field, detail)``."""
    return Problem(
        "invalid_field",
        "; ".join(f"{field}: {detail}" for field, detail in errors),
        members={"errors": [{"field": field, "detail": detail} for field, detail in errors]},
    )


def problem_of(error: AutomationError) -> Problem:
    """Our own errors by meaning. Texts written for operators (settings, hosts) stay inside."""
    if isinstance(error, BadInput):
        return invalid([(error.field, " · ".join(part for part in (error.why, error.remedy) if part))])
    if isinstance(error, Conflict):
        name = _KINDS.get(error.kind, error.kind)
        if name in _OPEN:
            return Problem(name, f"{error.what}: {error.why}", members=error.facts)
        return Problem(name) if name in TITLES else Problem("conflict")
    if isinstance(error, NotFound):
        return Problem("not_found")
    if isinstance(error, Unauthorized | Forbidden | BadAnswer):
        return Problem("bad_gateway")
    if isinstance(error, DeadlineExceeded):
        return Problem("timeout")
    if isinstance(error, Busy | RateLimited | Temporary):
        return Problem("unavailable", retry_after_s=error.retry_after)
    return Problem("internal")


def install(app: FastAPI) -> None:
    """Every error of an app as a problem document."""

    async def problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    async def automation(request: Request, error: AutomationError) -> JSONResponse:
        answer = problem_of(error)
        if answer.status >= 500 and answer.name not in ("no_capacity", "intake_closed"):
            log.error("request failed", path=request.url.path, error=str(error))
        return answer.response()

    async def validation(_: Request, error: RequestValidationError) -> JSONResponse:
        return invalid([(_field(e["loc"]), _text(e)) for e in error.errors()]).response()

    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # the framework's answer to a body that its parser cannot even refuse
            return invalid([("body", "is not JSON that can be read")]).response()
        names = {401: "unauthenticated", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
        answer = Problem(names.get(error.status_code, "internal" if error.status_code >= 500 else "not_found")).response()
        for name, value in (error.headers or {}).items():
            answer.headers[name] = value
        if error.status_code == 405:
            answer.headers["Allow"] = ", ".join(_allowed(request))
        return answer

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("unexpected error", path=request.url.path, kind=type(error).__name__)
        return Problem("internal").response()

    app.add_exception_handler(Problem, problem)  # type: ignore[arg-type]  # Starlette types every handler as one of Exception
    app.add_exception_handler(AutomationError, automation)  # type: ignore[arg-type]  # as above
    app.add_exception_handler(RequestValidationError, validation)  # type: ignore[arg-type]  # as above
    app.add_exception_handler(HTTPException, http)  # type: ignore[arg-type]  # as above
    app.add_exception_handler(Exception, unknown)


def _allowed(request: Request) -> list[str]:
    """Every method of the request's path; the framework names those of the first route alone."""
    scopes = [{**request.scope, "method": method} for method in _METHODS]
    return [scope["method"] for scope in scopes if any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)]


def _field(location: Sequence[Any]) -> str:
    """``("body", "runtimes", 0, "name")`` → ``runtimes.0.name``; the whole body is ``body``."""
    parts = [str(part) for part in location]
    if len(parts) == 2 and parts[0] == "body" and parts[1].isdigit():  # the position of a JSON error
        return "body"
    return ".".join(parts[1:]) or (parts[0] if parts else "body")


def _text(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "is not a field of this request"
    if error["type"] == "json_invalid":
        return "is not JSON"
    return str(error["msg"]).removeprefix("Value error, ")
