"""The command line's client of our own front door: what an operator orders goes the same way as a customer's order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from flows.errors import (
    AutomationError,
    BadAnswer,
    BadInput,
    Conflict,
    Forbidden,
    MisconfiguredSetting,
    NotFound,
    RateLimited,
    Unauthorized,
    Unreachable,
)
from flows.settings import ApiSettings

TIMEOUT_S = 15.0
#: Refusals that say "not now", with nothing recorded.
_REFUSED = frozenset({"no_capacity", "intake_closed"})
_KINDS: Mapping[int, type[AutomationError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 502: BadAnswer}
#: What a person does about a problem, by its type; ``{…}`` are members of the problem.
_REMEDIES = {
    "unauthenticated": "set ZLH_API__ADMIN_TOKEN to a valid one: zlh token create --admin",
    "forbidden": "set ZLH_API__ADMIN_TOKEN to an admin's: zlh token create --admin",
    "billing": "settle the account, then zlh customers resume CUSTOMER",
    "not_found": "look what there is: zlh servers --all; zlh operations",
    "name_taken": "choose another name; zlh servers show {name} is the one that has it",
    "nonce_reused": "zlh operations show {operation_id} is its order; use another --nonce for a new one",
    "server_held": "wait until it is over: zlh operations; zlh leases",
    "wrong_state": "look at it: zlh servers --all; zlh operations",
    "not_cancellable": "look at it: zlh operations show {operation_id}",
    "not_retryable": "look at it: zlh operations show {operation_id}",
    "conflict": "look at it (zlh servers, zlh operations) and order again",
    "quota": "ask for less, delete one of the customer's servers, or add a customer with a larger plan",
    "no_capacity": "make room: zlh hosts add (zlh servers: what fills those there are)",
    "intake_closed": "order again once orders are taken",
}


def call(
    settings: ApiSettings,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    named: Mapping[str, str] | None = None,
    transport: httpx.BaseTransport | None = None,
) -> dict[str, Any]:
    """One call with the admin token, never repeated: the caller's nonce makes a second one safe. ``named``: what the caller's user calls
    the body's fields.

    Raises the error that a problem document means, RateLimited with the seconds to wait, Unreachable where nothing or only a 5xx came,
    MisconfiguredSetting without a token.
    """
    token = settings.admin_token.get_secret_value()
    if not token:
        raise MisconfiguredSetting("ZLH_API__ADMIN_TOKEN", why="is not set", remedy="zlh token create --admin, then set it or its _FILE")
    try:
        with httpx.Client(transport=transport, timeout=TIMEOUT_S, trust_env=False) as client:
            answer = client.request(method, f"http://{settings.public_bind}{path}", json=body, headers={"Authorization": f"Bearer {token}"})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(
            f"API at {settings.public_bind}", why=str(error) or type(error).__name__, remedy="is zlh-api running? zlh doctor"
        ) from error
    try:
        content = answer.json() if answer.content else {}
    except ValueError as error:
        raise BadAnswer(f"API at {settings.public_bind}", why=f"{answer.status_code} without JSON", remedy="check ZLH_API__PUBLIC_BIND") from error
    if not isinstance(content, dict):
        raise BadAnswer(f"API at {settings.public_bind}", why="its answer is no object", remedy="check ZLH_API__PUBLIC_BIND")
    if answer.is_error:
        if answer.status_code == 422:
            raise _invalid(content, body or {}, named or {})
        raise _refusal(f"{method} {path}", answer, content)
    return content


def _refusal(what: str, answer: httpx.Response, problem: Mapping[str, Any]) -> AutomationError:
    kind, status = str(problem.get("type", "")).rpartition(":")[2], answer.status_code
    why = str(problem.get("detail") or problem.get("title") or status)
    wait_s = _seconds(answer.headers.get("Retry-After"))
    if kind == "rate_limited":
        return RateLimited(what, why=why, remedy=f"try again in {wait_s or 1:.0f} s", retry_after=wait_s)
    if status >= 500 and status != 502 and kind not in _REFUSED:
        return Unreachable(what, why=why, remedy="zlh doctor", retry_after=wait_s)
    remedy = _remedy(kind, problem)
    if status in _KINDS:
        return _KINDS[status](what, why=why, remedy=remedy)
    return Conflict(what, why=why, remedy=remedy, kind=kind)


def _invalid(problem: Mapping[str, Any], body: Mapping[str, Any], named: Mapping[str, str]) -> BadInput:
    """The first field that is wrong, under the name that the user knows; the others are named after it."""
    listed = problem.get("errors")
    errors = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    wrong = [(str(e.get("field", "")), str(e.get("detail", ""))) for e in errors] or [("request", str(problem.get("detail", "")))]
    field, why = wrong[0]
    more = "".join(f"; {_called(name, named)} {detail}" for name, detail in wrong[1:])
    return BadInput(_called(field, named), _sent(body, field), why=why + more, remedy="correct it and order again")


def _called(field: str, named: Mapping[str, str]) -> str:
    """``runtimes.0.name`` is a part of what the user knows as the whole."""
    return named.get(field) or named.get(field.partition(".")[0]) or field


def _sent(body: Any, field: str) -> object:
    for part in field.split("."):
        if isinstance(body, Mapping):
            body = body.get(part)
        elif isinstance(body, list) and part.isdecimal() and int(part) < len(body):
            body = body[int(part)]
        else:
            return None
    return body


def _remedy(kind: str, problem: Mapping[str, Any]) -> str:
    try:
        return _REMEDIES.get(kind, "zlh doctor").format(**problem)
    except KeyError:  # an older API leaves the member out
        return "zlh servers; zlh operations"


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
