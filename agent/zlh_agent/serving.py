"""Connections that do not ask are closed: who holds many open takes no descriptors from the agent. Used by ``__main__``.

A connection has :data:`REQUEST_S` for each whole request, from the moment it is there or the answer before was given. TLS has limits of its own,
since a connection is none for us until its handshake is done.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds for a request with its body.
REQUEST_S = 10.0
#: Seconds for the begin and the end of TLS.
HANDSHAKE_S, GOODBYE_S = 10.0, 5.0


class Connection(H11Protocol):
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._judge()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._judge()

    def on_response_complete(self) -> None:
        self._forget()
        super().on_response_complete()
        self._judge()

    def _judge(self) -> None:
        """The clock runs while a request is waited for or is not whole."""
        if self.transport.is_closing() or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Loop(asyncio.SelectorEventLoop):
    """Uvicorn hands no time-outs of TLS on: asyncio's own are 60 s and 30 s."""

    async def create_server(self, *arguments: Any, ssl: Any = None, **more: Any) -> asyncio.Server:
        if ssl is not None:
            more |= {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": GOODBYE_S}
        return await super().create_server(*arguments, ssl=ssl, **more)
