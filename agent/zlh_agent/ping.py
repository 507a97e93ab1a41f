"""Whether a Minecraft server serves: its port accepts and it answers the Server List Ping (https://minecraft.wiki/w/Java_Edition_protocol).

Few lines of our own, because the answer is the customer's: it is read up to a limit, and nothing of it is used but the number of players.
"""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import dataclass

#: Largest answer that is read, bytes: an icon and a long list of mods fit.
MAX_ANSWER = 1_048_576
#: "Whatever you speak": any server answers a status request of this protocol version.
_ANY_PROTOCOL = b"\xff\xff\xff\xff\x0f"


@dataclass(frozen=True, slots=True)
class Pong:
    """``reason`` says why it does not serve; ``players`` is None where it does not say."""

    ok: bool
    reason: str = ""
    players: int | None = None


class _Bad(Exception):
    """The answer is none; the text says what is wrong with it."""


async def ping(address: str, port: int, timeout_s: float) -> Pong:
    """Never raises for what the other side does."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(_request(address, port))
                return Pong(True, players=_players(await _answer(reader)))
            finally:
                writer.transport.abort()
    except TimeoutError:
        return Pong(False, f"port {port}: no answer to the Server List Ping within {timeout_s:g} s")
    except ConnectionRefusedError:
        return Pong(False, f"port {port} does not accept connections")
    except (OSError, EOFError):
        return Pong(False, f"port {port}: the connection broke during the Server List Ping")
    except (_Bad, ValueError, RecursionError) as error:
        return Pong(False, f"port {port}: no valid answer to the Server List Ping ({type(error).__name__})")


async def accepts(address: str, port: int, timeout_s: float) -> bool:
    """Whether anything accepts there."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


def _request(address: str, port: int) -> bytes:
    """A handshake that asks for the status, and the request for it."""
    host = address.encode()
    handshake = b"\x00" + _ANY_PROTOCOL + _varint(len(host)) + host + struct.pack(">H", port) + b"\x01"
    return _varint(len(handshake)) + handshake + b"\x01\x00"


async def _answer(reader: asyncio.StreamReader) -> object:
    """The JSON of the status. Raises _Bad, EOFError, ValueError."""
    length = await _read_varint(reader)
    if length > MAX_ANSWER:
        raise _Bad("too long")
    packet = asyncio.StreamReader()
    packet.feed_data(await reader.readexactly(length))
    packet.feed_eof()
    if await _read_varint(packet) != 0:
        raise _Bad("not a status")
    return json.loads(await packet.readexactly(await _read_varint(packet)))


def _players(status: object) -> int | None:
    if not isinstance(status, dict):
        raise _Bad("not an object")
    players = status.get("players")
    online = players.get("online") if isinstance(players, dict) else None
    return online if isinstance(online, int) and not isinstance(online, bool) and 0 <= online <= 1_000_000 else None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


async def _read_varint(reader: asyncio.StreamReader) -> int:
    value = 0
    for shift in range(0, 35, 7):
        byte = (await reader.readexactly(1))[0]
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value
    raise _Bad("a number that does not end")
