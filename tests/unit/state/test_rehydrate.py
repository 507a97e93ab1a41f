"""What a bulk repair of the proxy must leave as it is."""

from __future__ import annotations

from typing import Any

from flows.domain.finding import BrakeScope
from flows.domain.lease import LeaseKind
from flows.state import brakes, leases, rehydrate
from flows.state.database import Database


async def test_leased_and_paused_servers_are_left_alone_for_as_long_as_they_are(timed: Database, clock: Any, make: Any) -> None:
    async with timed.write() as tx:
        _free, repaired, patched, paused = [await make.server(tx) for _ in range(4)]
        await leases.take(tx, repaired.id, LeaseKind.REPAIR, "sweep", 1_000)
        await leases.take(tx, patched.id, LeaseKind.PATCH, "person", 1_000)
        await brakes.pause(tx, BrakeScope.SERVER, paused.id, "test", "test", until=tx.now + 1_000)
        assert await rehydrate.left_alone(tx) == {repaired.name, patched.name, paused.name}
    clock.advance(1_000)
    async with timed.read() as tx:
        assert await rehydrate.left_alone(tx) == {patched.name}  # an expired repair is free, a patch is not


async def test_a_paused_host_leaves_all_its_servers_alone(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
        await brakes.pause(tx, BrakeScope.HOST, server.node, "test", "test")
        assert await rehydrate.left_alone(tx) == {server.name}
