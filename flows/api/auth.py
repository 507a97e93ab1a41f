"""Who is asking. Customers and admins by tokens of the database, the control listener's machines by the control token."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from flows.api.deps import ApiDeps
from flows.api.problems import Problem
from flows.state.tokens import Caller


def bearer(request: Request) -> str:
    """The request's bearer token. Raises 401."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Problem("unauthenticated", "send Authorization: Bearer <token>")
    return token.strip()


async def authenticated(request: Request) -> Caller:
    """The caller, within the rate of its token; asked and counted once per request. Raises 401, 429."""
    known: Caller | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    deps: ApiDeps = request.app.state.deps
    caller = await deps.tokens.caller(bearer(request))
    if caller is None:
        raise Problem("unauthenticated", "the token is unknown, expired or revoked")
    wait_s = deps.rate.retry_after(f"token:{caller.token_id}")
    if wait_s is not None:
        raise Problem("rate_limited", retry_after_s=wait_s)
    request.state.caller = caller
    return caller


async def administrator(request: Request) -> Caller:
    """An admin. Raises 401, 403, 429."""
    caller = await authenticated(request)
    if caller.role != "admin":
        raise Problem("forbidden", "an admin token is needed")
    return caller


async def machine(request: Request) -> None:
    """The control token of the settings, compared in constant time; none configured admits nobody. Raises 401."""
    expected = request.app.state.deps.settings.api.control_token.get_secret_value()
    given = bearer(request)
    if not expected or not hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(expected.encode()).digest()):
        raise Problem("unauthenticated", "the control token is wrong or not configured")


def _first(check: Callable[[Request], Awaitable[Caller]]) -> type[APIRoute]:
    """Routes that ask ``check`` before anything is read of the request: the framework parses a body before it asks any dependency."""

    class Guarded(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                await check(request)
                return await handle(request)

            return guarded

    return Guarded


#: For routers: every route of theirs needs a caller, or an admin.
CallersRoute, AdminsRoute = _first(authenticated), _first(administrator)
CallerOf = Annotated[Caller, Depends(authenticated)]
Admin = Annotated[Caller, Depends(administrator)]
Machine = Depends(machine)
