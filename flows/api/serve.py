"""Both listeners in one process, ended together. Called by ``zlh-api`` and ``zlh up``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from flows.api.app import control_app, public_app
from flows.api.deps import ApiDeps
from flows.errors import MisconfiguredSetting, TaskFailed

#: Seconds that requests under way get to end.
GRACE_S = 10


class _Server(uvicorn.Server):
    """Says when it accepts, and leaves signals to whoever runs both servers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(deps: ApiDeps, stop: asyncio.Event, on_ready: Callable[[str, str], None] | None = None) -> None:
    """Serves until ``stop`` is set, then lets requests under way end. ``on_ready`` gets the public and the control address, as
    ``address:port``, once both accept (port 0 in the settings: any free one).

    Raises MisconfiguredSetting where an address cannot be bound, TaskFailed if a listener ends by itself.
    """
    api = deps.settings.api
    sockets = [_bind("ZLH_API__PUBLIC_BIND", api.public_bind)]
    try:
        sockets.append(_bind("ZLH_API__CONTROL_BIND", api.control_bind))
        listeners = [_Server(_config(app)) for app in (public_app(deps), control_app(deps))]
        running = [asyncio.create_task(listener.serve([at])) for listener, at in zip(listeners, sockets, strict=True)]
        await _until(stop, listeners, running, sockets, on_ready)
    finally:
        for at in sockets:
            at.close()


async def _until(
    stop: asyncio.Event,
    listeners: list[_Server],
    running: list[asyncio.Task[None]],
    sockets: list[socket.socket],
    on_ready: Callable[[str, str], None] | None,
) -> None:
    stopping = asyncio.create_task(stop.wait())
    accepting = asyncio.ensure_future(asyncio.gather(*(listener.accepting.wait() for listener in listeners)))
    try:
        waited: list[asyncio.Future[Any]] = [stopping, accepting, *running]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if on_ready is not None and accepting.done():
            on_ready(*(_name(at) for at in sockets))
        await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
        early = any(task.done() for task in running)
    finally:
        stopping.cancel()
        accepting.cancel()
        for listener in listeners:
            listener.should_exit = True
        await asyncio.gather(*running, return_exceptions=True)
    if early and not stop.is_set():
        raise TaskFailed("zlh-api", why="a listener ended by itself", remedy="see its log")


def run(deps: ApiDeps) -> None:
    """Serves until SIGTERM or SIGINT; the program of ``zlh-api``."""

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            await serve(deps, stop)
        finally:
            await deps.database.close()

    asyncio.run(main())


def _config(app: FastAPI) -> uvicorn.Config:
    # The peer's address stays the peer's: X-Forwarded-For is read by flows.api.shield, from trusted proxies alone.
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=75,
    )


def _bind(variable: str, where: str) -> socket.socket:
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    at = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        at.bind((host, int(port)))
        at.listen(1024)
    except (OSError, ValueError, OverflowError) as error:
        at.close()
        raise MisconfiguredSetting(variable, why=f"{where!r}: {error}", remedy="name a free literal address:port of this machine") from error
    at.setblocking(False)
    return at


def _name(at: socket.socket) -> str:
    host, port = at.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
