"""The command line's client of our own front door: what an operator orders goes the same way as a customer's order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from flows.errors import AutomationError, BadAnswer, BadInput, Conflict, Forbidden, MisconfiguredSetting, NotFound, Unauthorized, Unreachable
from flows.settings import ApiSettings

TIMEOUT_S = 15.0
#: Refusals that say "not now", with nothing recorded.
_REFUSED = frozenset({"no_capacity", "intake_closed"})
_KINDS: Mapping[int, type[AutomationError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 502: BadAnswer}


def call(
    settings: ApiSettings, method: str, path: str, body: Mapping[str, Any] | None = None, *, transport: httpx.BaseTransport | None = None
) -> dict[str, Any]:
    """One call with the admin token, never repeated: the caller's nonce makes a second one safe.

    Raises the error that a problem document means, Unreachable where nothing or only a 5xx came, MisconfiguredSetting without a token.
    """
    token = settings.admin_token.get_secret_value()
    if not token:
        raise MisconfiguredSetting("ZLH_API__ADMIN_TOKEN", why="is not set", remedy="zlh token create --admin, then set it or its _FILE")
    try:
        with httpx.Client(transport=transport, timeout=TIMEOUT_S, trust_env=False) as client:
            answer = client.request(method, f"http://{settings.public_bind}{path}", json=body, headers={"Authorization": f"Bearer {token}"})
    except httpx.HTTPError as error:
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
        raise _refusal(f"{method} {path}", answer.status_code, content)
    return content


def _refusal(what: str, status: int, problem: Mapping[str, Any]) -> AutomationError:
    kind = str(problem.get("type", "")).rpartition(":")[2]
    why = str(problem.get("detail") or problem.get("title") or status)
    if status == 422:
        return BadInput(what.partition(" ")[2], kind, why=why, remedy="correct it")
    if status >= 500 and status != 502 and kind not in _REFUSED:
        return Unreachable(what, why=why, remedy="zlh doctor")
    remedy = {401: "set ZLH_API__ADMIN_TOKEN to a valid one: zlh token create --admin", 409: "zlh operations; zlh leases"}.get(status, "")
    return _KINDS.get(status, Conflict)(what, why=why, remedy=remedy)
