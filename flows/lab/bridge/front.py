"""Where players connect: reads the handshake's host name, finds the backend of that name, forwards the stream both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flows.lab.bridge.backends import Backend, Backends
from flows.lab.minecraft import NotAHandshake, read_handshake

#: Seconds for the handshake and for reaching the backend.
PATIENCE_S = 5.0
CHUNK = 65_536
#: The handshake's intent of a client that joins.
LOGIN = 2


class Front:
    """``current`` gives the registrations of now: they change under open connections, which go on."""

    def __init__(self, bind: tuple[str, int], domain: str, current: Callable[[], Backends]) -> None:
        self.host, self.port = bind
        self._domain, self._current = domain, current
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _backend(self, host: str) -> Backend | None:
        label, _, domain = host.partition(".")
        return self._current().registered.get(label) if domain in ("", self._domain) else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        backends, playing = self._current(), 0
        try:
            async with asyncio.timeout(PATIENCE_S):
                handshake = await read_handshake(reader)
                backend = self._backend(handshake.host)
                if backend is None:
                    return
                there, back = await asyncio.open_connection(backend.address, backend.port)
            playing = int(handshake.intent == LOGIN)
            backends.players += playing
            back.write(handshake.raw)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, back))
                both.create_task(_pump(there, writer))
        except* (NotAHandshake, asyncio.IncompleteReadError, OSError, TimeoutError, asyncio.CancelledError):
            pass  # the player's connection simply ends
        finally:
            backends.players -= playing
            self._tasks.discard(task)
            writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copies until the end, which closes the other side too."""
    try:
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()
    finally:
        sink.close()
