"""What every request passes before any route sees it: the rate of its address, the size of its body, and a count for the metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.api.deps import ApiDeps
from flows.api.problems import Problem


class Shield:
    """Pure ASGI: a response middleware of the framework would cost more than some routes do."""

    def __init__(self, app: ASGIApp, deps: ApiDeps, listener: str, *, by_address: bool) -> None:
        self._app, self._deps, self._listener, self._by_address = app, deps, listener, by_address
        self._limit = deps.settings.api.max_body_bytes
        self._trusted = frozenset(deps.settings.api.trusted_proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = self._counting(send)
        if self._by_address:
            wait_s = self._deps.rate.retry_after(f"address:{self._address(scope)}")
            if wait_s is not None:
                await Problem("rate_limited", retry_after_s=wait_s).response()(scope, receive, send)
                return
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > self._limit:
            await self._too_large()(scope, receive, send)
            return
        body = await self._body(scope, receive)
        if body is None:
            await self._too_large()(scope, receive, send)
            return
        await self._app(scope, body, send)

    async def _body(self, scope: Scope, receive: Receive) -> Receive | None:
        """The body read whole (it is small, or refused), given on in one piece. None: too large."""
        if not _header(scope, b"content-length") and not _header(scope, b"transfer-encoding"):
            return receive
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return _replay(message, receive)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                return None
            if not message.get("more_body", False):
                return _replay({"type": "http.request", "body": b"".join(parts), "more_body": False}, receive)

    def _too_large(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        answer = Problem("body_too_large", members={"limit": self._limit}).response()
        answer.headers["Connection"] = "close"  # the rest of the body is never read
        return answer

    def _address(self, scope: Scope) -> str:
        """The peer's; behind a proxy that we trust, the nearest address in ``X-Forwarded-For`` that is not such a proxy."""
        address: str = scope["client"][0] if scope.get("client") else ""
        if address in self._trusted:
            for hop in reversed(_header(scope, b"x-forwarded-for").decode("latin-1").split(",")):
                if hop.strip() and hop.strip() not in self._trusted:
                    return hop.strip()
        return address

    def _counting(self, send: Send) -> Send:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                key = (self._listener, message["status"])
                self._deps.counts[key] = self._deps.counts.get(key, 0) + 1
            await send(message)

        return counting


def _header(scope: Scope, name: bytes) -> bytes:
    values = [value for key, value in scope["headers"] if key == name]
    return b",".join(values)


def _replay(first: Message, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return first

    return again
