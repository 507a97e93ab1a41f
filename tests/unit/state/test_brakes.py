"""Pauses: set, replaced, lifted, expired, recalled; each with its audit line."""

from __future__ import annotations

from typing import Any

from flows.domain.finding import BrakeScope
from flows.state import audit, brakes
from flows.state.database import Database

DAY = 86_400_000


async def test_a_pause_holds_until_resumed(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        brake = await brakes.pause(tx, BrakeScope.SERVER, "s1", "looking at it", "admin:eve")
        assert await brakes.active(tx) == (brake,)
        assert await brakes.resume(tx, BrakeScope.ALL, "", "admin:eve") == []
        assert await brakes.resume(tx, BrakeScope.SERVER, "s2", "admin:eve") == []
    clock.advance(30 * DAY)
    async with timed.write() as tx:
        assert await brakes.active(tx) == (brake,)
        assert await brakes.resume(tx, BrakeScope.SERVER, "s1", "admin:eve") == [brake]
        assert await brakes.active(tx) == ()
        assert await brakes.resume(tx, BrakeScope.SERVER, "s1", "admin:eve") == []
        lines = [(e.actor, e.action, e.subject, e.server_id) for e in reversed(await audit.list_(tx))]
    assert lines == [("admin:eve", "pause", "server:s1", "s1"), ("admin:eve", "resume", "server:s1", "s1")]


async def test_a_second_pause_replaces_the_first(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        await brakes.pause(tx, BrakeScope.ALL, "", "short", "admin:eve", until=clock.now + 1_000)
        second = await brakes.pause(tx, BrakeScope.ALL, "", "long", "admin:bob")
        other = await brakes.pause(tx, BrakeScope.HOST, "pve1", "disk", "admin:bob")
        assert set(await brakes.active(tx)) == {second, other}
        assert len(await brakes.resume(tx, BrakeScope.ALL, "", "admin:bob")) == 1
        assert await brakes.active(tx) == (other,)


async def test_a_pause_ends_by_itself_and_is_told_once(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        brake = await brakes.pause(tx, BrakeScope.HOST, "pve1", "disk", "admin:eve", until=clock.now + 1_000)
        assert await brakes.expire(tx) == []
    clock.advance(999)
    async with timed.read() as tx:
        assert await brakes.active(tx) == (brake,)
    clock.advance(1)
    async with timed.write() as tx:
        assert await brakes.active(tx) == (), "its end needs nobody to notice it"
        assert await brakes.expire(tx) == [brake]
        assert await brakes.expire(tx) == []
        assert (await audit.list_(tx))[0].actor == "system:clock"


async def test_a_pause_is_recalled_daily(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        brake = await brakes.pause(tx, BrakeScope.ALL, "", "holiday", "admin:eve")
        assert await brakes.recall(tx, DAY) == []
    told = []
    for _ in range(49):
        clock.advance(DAY // 24)
        async with timed.write() as tx:
            told += [(b.id, tx.now - b.created_at) for b in await brakes.recall(tx, DAY)]
    assert told == [(brake.id, DAY), (brake.id, 2 * DAY)]
