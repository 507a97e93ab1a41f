"""What the lab's HTTP parts share: a listener that can close and come back on its port, bearer tokens, problem documents."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
import ssl
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

#: Seconds that a request under way gets when its server goes; the lab's servers die as processes do.
LAST_BREATH_S = 0.01


class Site:
    """One aiohttp application on one address. :meth:`close` cuts every connection, as the end of a process does;
    :meth:`open` after it listens on the same port again."""

    def __init__(self, bind: tuple[str, int], build: Callable[[], web.Application], tls: ssl.SSLContext | None = None) -> None:
        self.host, self.port = bind
        self._build, self._tls = build, tls
        self._runner: web.AppRunner | None = None

    @property
    def listening(self) -> bool:
        return self._runner is not None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    async def open(self) -> None:
        """Raises OSError where the address is taken."""
        if self._runner is not None:
            return
        runner = web.AppRunner(self._build(), access_log=None, shutdown_timeout=LAST_BREATH_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port, ssl_context=self._tls, backlog=512).start()
        except OSError:
            await runner.cleanup()
            raise
        self.port = runner.addresses[0][1]
        self._runner = runner

    async def close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is None:
            return
        transports = [c.transport for c in runner.server.connections if c.transport is not None] if runner.server is not None else []
        await runner.cleanup()
        for transport in transports:
            with contextlib.suppress(AttributeError):  # before Python 3.11.3 a TLS transport that is gone cannot be aborted
                transport.abort()  # a TLS connection would otherwise wait for its peer's farewell
        if transports:
            await asyncio.sleep(0)  # lets the loop close the sockets


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def problem(status: int, detail: str, *, headers: dict[str, str] | None = None, **extra: object) -> web.Response:
    """An RFC 9457 problem document."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **extra}
    return web.json_response(body, status=status, content_type="application/problem+json", headers=headers)


def bearer_is(request: web.Request, *accepted: str | None) -> bool:
    """Compares the bearer token with each accepted one in constant time."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    right = False
    for token in accepted:
        right |= bool(token) and hmac.compare_digest(given.strip().encode(), str(token).encode())
    return scheme.lower() == "bearer" and right


def unauthorized() -> web.Response:
    return problem(401, "a bearer token is missing or wrong", headers={"WWW-Authenticate": "Bearer"})


LEASE_HEADER = "X-ZLH-Lease-Token"


def lease_token(request: web.Request) -> int:
    """The fencing token of a mutating request. Raises HTTPException (428 missing, 422 malformed)."""
    raw = request.headers.get(LEASE_HEADER)
    if raw is None:
        raise refuse(problem(428, f"{LEASE_HEADER} is required"))
    if not raw.isascii() or not raw.isdigit():
        raise refuse(problem(422, f"{LEASE_HEADER} must be a whole number"))
    return int(raw)


class Refused(Exception):
    """Carries an answer out of a handler's depths; :func:`refusals` sends it."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.status)
        self.response = response


def refuse(response: web.Response) -> Refused:
    return Refused(response)


@web.middleware
async def refusals(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
    """Turns :class:`Refused` and aiohttp's own refusals into problem documents."""
    try:
        return await handler(request)  # type: ignore[misc,no-any-return] # aiohttp types handlers loosely
    except Refused as refused:
        return refused.response
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return problem(error.status, f"{request.method} {request.path}: {error.reason}", headers=allow)


async def read_json(request: web.Request) -> dict[str, object]:
    """The body as a JSON object; anything else is a 400 problem."""
    try:
        body = await request.json()
    except ValueError:
        raise refuse(problem(400, "the body is not JSON")) from None
    if not isinstance(body, dict):
        raise refuse(problem(400, "the body must be a JSON object"))
    return body


async def settle(task: asyncio.Task[None] | None) -> None:
    """Cancels a background task and waits for its end."""
    if task is None or task is asyncio.current_task():
        return
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
