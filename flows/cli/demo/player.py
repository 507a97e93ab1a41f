"""Server List Ping as a player's client sends it: to the proxy's address, with the server's own host name in the handshake.

By hand, since the libraries for it connect to the very name they ask for, and the lab's names are in no resolver.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

#: Protocol number of a client that only asks: the server answers any.
ANY_PROTOCOL = -1 & 0xFFFFFFFF
LARGEST_ANSWER = 1 << 20


async def ping(address: str, port: int, host: str, timeout_s: float = 5.0) -> dict[str, Any]:
    """The status that the game behind ``host`` gives (``version``, ``players``, …). Raises OSError, TimeoutError or ValueError."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(address, port)
        try:
            name = host.encode()
            handshake = _varint(0) + _varint(ANY_PROTOCOL) + _varint(len(name)) + name + struct.pack(">H", port) + _varint(1)
            writer.write(_varint(len(handshake)) + handshake + b"\x01\x00")
            try:
                size = await _read_varint(reader)
                if not 0 < size <= LARGEST_ANSWER:
                    raise ValueError(f"an answer of {size} bytes")
                body = await reader.readexactly(size)
            except asyncio.IncompleteReadError as error:
                raise ConnectionError("closed without an answer") from error
        finally:
            writer.close()
    status: dict[str, Any] = json.loads(body[body.index(b"{") :])
    return status


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


async def _read_varint(reader: asyncio.StreamReader) -> int:
    value = 0
    for shift in range(0, 35, 7):
        byte = (await reader.readexactly(1))[0]
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value
    raise ValueError("a number without end")
