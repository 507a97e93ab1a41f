"""``zlh known-hosts``, as SSH's KnownHostsCommand asks it."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

from flows.state import host_keys
from flows.state.database import Tx
from tests.unit.cli.conftest import Fleet, Said


def key(name: str) -> str:
    return base64.b64encode(b"\0\0\0\x0bssh-ed25519" + name.encode()).decode()


def test_only_the_asked_address_and_nothing_for_a_stranger(
    zlh: Callable[..., Said], fleet: Fleet, write: Callable[[Callable[[Tx], Awaitable[Any]]], Any]
) -> None:
    async def put(tx: Tx) -> None:
        await host_keys.put(tx, fleet.ids["fern"], "10.20.0.1", {"ssh-ed25519": key("one")})
        await host_keys.put(tx, fleet.ids["moss"], "10.20.0.11", {"ssh-ed25519": key("two")})

    write(put)
    assert zlh("known-hosts", "10.20.0.1").out == f"10.20.0.1 ssh-ed25519 {key('one')}\n"
    assert len(zlh("known-hosts").out.splitlines()) == 2
    stranger = zlh("known-hosts", "10.9.9.9")
    assert (stranger.status, stranger.out) == (0, "")
