"""The first packet of a Minecraft client: which host name does it want? Used by the bridge's TCP front."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

#: Largest handshake that is read, bytes; a host name has at most 255 characters, mods append some.
HANDSHAKE_LIMIT = 2048


class NotAHandshake(Exception):
    """The stream does not begin with a handshake."""


@dataclass(frozen=True)
class Handshake:
    """``raw`` is the whole packet, to be passed on. ``intent``: 1 status, 2 login, 3 transfer."""

    host: str
    port: int
    protocol: int
    intent: int
    raw: bytes


async def read_handshake(reader: asyncio.StreamReader) -> Handshake:
    """Raises NotAHandshake, or IncompleteReadError where the stream ends early."""
    head, length = await _varint(reader)
    if not 1 <= length <= HANDSHAKE_LIMIT:
        raise NotAHandshake(f"a packet of {length} bytes")
    body = await reader.readexactly(length)
    cursor = _Cursor(body)
    if cursor.varint() != 0:
        raise NotAHandshake("another packet")
    protocol = cursor.varint()
    try:
        host = cursor.take(cursor.varint()).decode()
    except UnicodeDecodeError as error:
        raise NotAHandshake("the host name is not UTF-8") from error
    port = int.from_bytes(cursor.take(2), "big")
    intent = cursor.varint()
    return Handshake(host.split("\0", 1)[0].rstrip(".").lower(), port, protocol, intent, head + body)


async def _varint(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    raw = b""
    for shift in range(0, 35, 7):
        raw += await reader.readexactly(1)
        if not raw[-1] & 0x80:
            return raw, sum((byte & 0x7F) << at for byte, at in zip(raw, range(0, shift + 7, 7), strict=True))
    raise NotAHandshake("a number without end")


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise NotAHandshake("the packet is cut short")
        self._at += count
        return piece

    def varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
        raise NotAHandshake("a number without end")
