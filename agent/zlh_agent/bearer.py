"""What stands before every route: the server's own bearer token, and a cap on bodies. ASGI middleware, put in place by ``routes``."""

from __future__ import annotations

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zlh_agent.problem import problem

#: Seconds for a request's body.
BODY_S = 10.0


class Bearer:
    """401 unless the request carries one of ``accepted``. Every accepted token is compared, each in constant time."""

    def __init__(self, app: ASGIApp, accepted: tuple[str, ...]) -> None:
        self._app, self._accepted = app, tuple(token.encode() for token in accepted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not (scope["type"] == "http" and self._admits(Headers(scope=scope).get("authorization", ""))):
            if scope["type"] == "http":
                answer = problem(401, "a bearer token is missing or wrong", headers={"WWW-Authenticate": "Bearer", "Connection": "close"})
                await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        right = False
        for token in self._accepted:
            right |= hmac.compare_digest(given.strip().encode(), token)
        return scheme.lower() == "bearer" and right


class BodyCap:
    """413 for a body of more than ``limit`` bytes, announced or not; 408 for one that does not come. What is within goes on whole."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        close = {"Connection": "close"}
        if int(Headers(scope=scope).get("content-length", "0")) > self._limit:  # h11 has refused what is no number
            await problem(413, f"the body is larger than {self._limit} bytes", headers=close)(scope, receive, send)
            return
        body, more = b"", True
        try:
            async with asyncio.timeout(BODY_S):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body, more = body + message.get("body", b""), message.get("more_body", False)
                    if len(body) > self._limit:
                        await problem(413, f"the body is larger than {self._limit} bytes", headers=close)(scope, receive, send)
                        return
        except TimeoutError:
            await problem(408, f"the body did not come within {BODY_S:g} s", headers=close)(scope, receive, send)
            return
        first = True

        async def replay() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, replay, send)
