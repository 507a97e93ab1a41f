"""SSH host keys, read through the node when a container is trusted. From then on SSH is strict: ``known_hosts`` is made of these."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from flows.errors import BadAnswer
from flows.state import tables as t
from flows.state.database import Tx


@dataclass(frozen=True, slots=True)
class HostKey:
    """One line of ``known_hosts``. ``public_key`` is the base64 part alone."""

    server_id: str
    key_type: str
    public_key: str
    address: str
    read_at: int


async def put(tx: Tx, server_id: str, address: str, keys: Mapping[str, str]) -> None:
    """Replaces all keys of the server with those that its container has now: type → key, as the base64 part or as the whole line of its
    file. Raises BadAnswer for what is no key of that type: it came from a container."""
    rows = [
        {"server_id": server_id, "key_type": kind, "public_key": _bare(kind, key), "address": address, "read_at": tx.now}
        for kind, key in keys.items()
    ]
    await forget(tx, server_id)
    if rows:
        await tx.execute(insert(t.host_keys), rows)


def _bare(kind: str, key: str) -> str:
    """The base64 part of ``[type] key [comment]``. It names its own type: RFC 4253, section 6.6."""
    words = key.split()
    encoded = words[1] if words[:1] == [kind] and len(words) > 1 else words[0] if words else ""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except ValueError:
        blob = b""
    named = len(kind).to_bytes(4, "big") + kind.encode()
    if not blob.startswith(named):
        raise BadAnswer(f"host key {kind}", why=f"{key[:80]!r} is no key of that type")
    return encoded


async def get(tx: Tx, server_id: str) -> dict[str, str]:
    """Type → key; empty: the container was never trusted, strict SSH must fail."""
    rows = await tx.execute(select(t.host_keys).where(t.host_keys.c.server_id == server_id).order_by(t.host_keys.c.key_type))
    return {r.key_type: r.public_key for r in rows}


async def list_(tx: Tx) -> list[HostKey]:
    """Of every server, for a whole ``known_hosts``."""
    rows = await tx.execute(select(t.host_keys).order_by(t.host_keys.c.server_id, t.host_keys.c.key_type))
    return [HostKey(r.server_id, r.key_type, r.public_key, r.address, r.read_at) for r in rows]


async def forget(tx: Tx, server_id: str) -> None:
    """The container is gone: whoever answers on its address next is somebody else."""
    await tx.execute(delete(t.host_keys).where(t.host_keys.c.server_id == server_id))
