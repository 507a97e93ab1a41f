"""Cloudflare's refusals, by error code and then by status. Used by :mod:`cloudflare_dns` alone."""

from __future__ import annotations

from typing import Any

import httpx
from cloudflare import APIConnectionError, APIStatusError

from flows.clients.http import fit
from flows.errors import (
    AmbiguousEffect,
    AutomationError,
    BadAnswer,
    BadInput,
    Busy,
    Conflict,
    Forbidden,
    MisconfiguredSetting,
    RateLimited,
    Unauthorized,
    Unreachable,
)
from flows.settings import DnsSettings

#: Something stands there that excludes a creation, or what was to go is gone already.
_CONFLICT = frozenset({81044, 81053, 81054, 81055, 81057, 81058, 81061})
_CREDENTIAL = frozenset({6003, 6111, 9106, 9107, 10000, 10001})
_ZONE = frozenset({1001, 1002, 7000, 7003})
_LOOK = "check Cloudflare's status and ZLH_DNS__CLOUDFLARE_URL"
_TOKEN = "make an API token with Zone.DNS Edit for the zone and set ZLH_DNS__CLOUDFLARE_TOKEN"  # noqa: S105 - no token, but where it goes


def refusal(what: str, error: APIStatusError, settings: DnsSettings, *, sent: bool = False) -> AutomationError:
    """``sent``: a write. Of an answer with an error code we know that nothing was done; of a gateway's 5xx we do not."""
    status, secret = error.status_code, settings.cloudflare_token.get_secret_value()
    codes, text = _errors(error.body, secret)
    why = f"{text or 'no error code'} (HTTP {status})"
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return RateLimited(what, why=why, remedy="it is tried again later", retry_after=_retry_after(error.response))
    if codes & _CONFLICT:
        return Conflict(what, why=f"the records changed since they were read: {why}", remedy="read them again")
    if 9109 in codes and "invalid" not in text.lower():
        return Forbidden(what, why=why, remedy=_TOKEN)
    if codes & (_CREDENTIAL | {9109}) or status == httpx.codes.UNAUTHORIZED:
        return Unauthorized(what, why=why, remedy=_TOKEN)
    if codes & _ZONE:
        return MisconfiguredSetting("ZLH_DNS__CLOUDFLARE_ZONE_ID", why=f"{what}: {why}", remedy="copy it from the zone's overview page")
    if status == httpx.codes.FORBIDDEN:
        return Forbidden(what, why=why, remedy=_TOKEN)
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return AmbiguousEffect(what, why=why, remedy="read the zone before acting again") if sent else Busy(what, why=why, remedy=_LOOK)
    if status in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY) and sent and codes:
        return BadInput("wanted", what, why=why)
    return BadAnswer(what, why=why, remedy=_LOOK)


def lost(what: str, error: APIConnectionError, *, sent: bool) -> AutomationError:
    """No answer. A connection that never was has carried nothing."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, httpx.HTTPError):
        cause = cause.__cause__
    why = f"no answer ({type(cause or error).__name__})"
    if sent and not isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return AmbiguousEffect(what, why=why, remedy="read the zone before acting again")
    return Unreachable(what, why=why, remedy=_LOOK)


def _errors(body: object, secret: str) -> tuple[set[int], str]:
    """Codes with those of their chains, and a text without our secret."""
    codes: set[int] = set()
    texts: list[str] = []

    def walk(entries: Any) -> None:
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                if isinstance(entry.get("code"), int):
                    codes.add(entry["code"])
                texts.append(f"{entry.get('code')} {entry.get('message')}")
                walk(entry.get("error_chain"))

    walk(body.get("errors") if isinstance(body, dict) else None)
    return codes, fit("; ".join(texts), secret)


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:
        return None
