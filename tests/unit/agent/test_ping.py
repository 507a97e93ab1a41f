"""The Server List Ping against real sockets, honest and hostile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from zlh_agent.ping import MAX_ANSWER, accepts, ping


@asynccontextmanager
async def serving(answer: bytes, seen: list[bytes] | None = None, *, hang: bool = False) -> AsyncIterator[int]:
    handlers: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            request = await reader.read(1024)
            if seen is not None:
                seen.append(request)
            if hang:
                await reader.read()  # until the other side gives up
            writer.write(answer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*(handler for handler in handlers if handler is not None))


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def packet(text: bytes) -> bytes:
    body = b"\x00" + varint(len(text)) + text
    return varint(len(body)) + body


async def test_it_asks_as_the_protocol_says_and_reads_the_players() -> None:
    seen: list[bytes] = []
    async with serving(packet(json.dumps({"players": {"online": 7, "max": 20}, "description": "x" * 9000}).encode()), seen) as port:
        pong = await ping("127.0.0.1", port, 5)
    assert (pong.ok, pong.players, pong.reason) == (True, 7, "")
    assert seen == [b"\x13\x00\xff\xff\xff\xff\x0f\x09127.0.0.1" + port.to_bytes(2, "big") + b"\x01\x01\x00"]


@pytest.mark.parametrize("players", [{"online": "7"}, {"online": True}, {"online": -1}, {"online": 10**9}, [], None, {}])
async def test_players_that_mean_nothing_are_left_out(players: object) -> None:
    async with serving(packet(json.dumps({"players": players}).encode())) as port:
        pong = await ping("127.0.0.1", port, 5)
    assert (pong.ok, pong.players) == (True, None)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        packet(b"not json"),
        packet(b"[1]"),
        packet(b"[" * 100_000),
        packet(b"\xff\xfe"),
        b"\xff" * 9,
        packet(b"{}" + b" " * MAX_ANSWER),
        varint(50) + b"\x00\x05{}",
        b"\x02\x05\x00",
    ],
)
async def test_whatever_else_comes_is_no_answer(answer: bytes) -> None:
    async with serving(answer) as port:
        pong = await ping("127.0.0.1", port, 5)
    assert not pong.ok and f"port {port}" in pong.reason


async def test_a_server_that_hangs_costs_the_time_out_and_no_more() -> None:
    async with serving(b"", hang=True) as port:
        pong = await ping("127.0.0.1", port, 0.1)
        assert await accepts("127.0.0.1", port, 1)
    assert pong.reason == f"port {port}: no answer to the Server List Ping within 0.1 s"


async def test_a_port_that_nobody_serves_refuses(port: int) -> None:
    assert (await ping("127.0.0.1", port, 1)).reason == f"port {port} does not accept connections"
    assert not await accepts("127.0.0.1", port, 1)
