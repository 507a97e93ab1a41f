"""A wire between a client and a server of a test, to be cut: what is on its way stays on its way, and nobody is told.

A cut network answers nothing (a firewall that drops, a switch without power): connections stand open and silent, new ones as well. With
``reset=True`` it refuses at once instead, as a server that is gone does.
"""

from __future__ import annotations

import asyncio
import contextlib


class TcpRelay:
    """Listens on loopback and passes everything on to ``upstream``. Close it."""

    def __init__(self, upstream: int) -> None:
        self.upstream, self.port = upstream, 0
        self._whole = asyncio.Event()
        self._whole.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> TcpRelay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def cut(self, *, reset: bool = False) -> None:
        """Nothing passes from now on."""
        self._whole.clear()
        if reset:
            await self._end()

    async def mend(self) -> None:
        """New connections pass, and old ones go on where they stopped."""
        self._whole.set()
        if self._server is None:
            await self.open()

    async def close(self) -> None:
        await self._end()

    async def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            await self._whole.wait()
            answers, there = await asyncio.open_connection("127.0.0.1", self.upstream)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, there))
                both.create_task(self._pass(answers, writer))
        except* (OSError, asyncio.CancelledError):
            pass  # the connection simply ends
        finally:
            self._tasks.discard(task)
            for end in (there, writer):
                if end is not None:
                    with contextlib.suppress(OSError):
                        end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            await self._whole.wait()
            writer.write(chunk)
            await writer.drain()
        raise ConnectionError  # one side hung up: so does the other
