"""``zlh redis reset``, ``zlh engine reset``, ``zlh intake``: refused in words before anything is touched."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from flows.domain.lease import LeaseKind
from flows.state import audit, control, leases
from flows.state.database import Tx

Zlh = Callable[..., Any]
Write = Callable[[Callable[[Tx], Awaitable[Any]]], Any]


def test_without_a_redis_there_is_nothing_to_reset(zlh: Zlh) -> None:
    said = zlh("redis", "reset", "--yes")
    assert said.status == 2
    assert "ZLH_REDIS__URL" in said.err


def test_nothing_is_thrown_away_without_a_yes(zlh: Zlh, home: Path) -> None:
    with (home / "zlh.env").open("a") as file:
        file.write("ZLH_REDIS__URL=redis://127.0.0.1:1/0\n")
    for command in (
        ("redis", "reset"),
        ("redis", "reset", "--all"),
        ("engine", "reset"),
        ("validate", "provisioning"),
        ("validate", "post-migration"),
    ):
        said = zlh(*command)
        assert said.status == 2, command
        assert "--yes" in said.err


def test_a_live_lease_is_named(zlh: Zlh, write: Write) -> None:
    async def hold(tx: Tx) -> None:
        await leases.take(tx, "dns:x", LeaseKind.REPAIR, "host:1:0123abcd", 60_000)

    write(hold)
    said = zlh("engine", "reset", "--yes")
    assert said.status == 1
    assert "repair of dns:x (host:1:0123abcd)" in said.err
    assert "--force" in said.err


def test_where_the_engines_database_is_not_the_setting_is_named_and_nothing_was_done(zlh: Zlh, write: Write) -> None:
    before = write(control.generation)
    said = zlh("engine", "reset", "--yes")
    assert said.status == 1
    assert "ZLH_ENGINE__HOME" in said.err
    assert write(control.generation) == before


def test_intake(zlh: Zlh, write: Write) -> None:
    assert json.loads(zlh("intake", "--json").out) == {"open": True}
    assert zlh("intake", "close").status == 2
    assert zlh("intake", "close", "--yes").status == 0
    said = zlh("intake")
    assert (said.status, said.out) == (1, "closed: zlh intake open\n")
    assert zlh("intake", "open", "--yes").status == 0
    assert zlh("intake").status == 0

    async def lines(tx: Tx) -> list[str]:
        return [line.action for line in await audit.list_(tx, limit=2)]

    assert write(lines) == ["intake_closed.set"] * 2
