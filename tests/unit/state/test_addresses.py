"""Addresses: the lowest free one of the pool, without those that mean something else."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.errors import Conflict
from flows.state import addresses
from flows.state.database import Database


async def reserve(db: Database, pool: str, first: str = "", gateway: str = "") -> str:
    async with db.write() as tx:
        return await addresses.reserve(tx, "server", pool, first, gateway)


async def test_begins_at_the_eleventh_unless_told_otherwise(timed: Database) -> None:
    assert await reserve(timed, "10.20.0.0/16", gateway="10.20.0.1") == "10.20.0.11"
    assert await reserve(timed, "10.20.0.0/16", "10.20.0.2", "10.20.0.1") == "10.20.0.2"
    assert await reserve(timed, "10.20.0.0/16", "10.20.0.2", "10.20.0.1") == "10.20.0.3"


async def test_network_gateway_and_broadcast_address_are_never_given(timed: Database) -> None:
    got = [await reserve(timed, "10.0.0.0/29", "10.0.0.0", "10.0.0.3") for _ in range(5)]
    assert got == ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    with pytest.raises(Conflict, match="no free address"):
        await reserve(timed, "10.0.0.0/29", "10.0.0.0", "10.0.0.3")


@pytest.mark.parametrize("gateway", ["10.0.0.1", "10.0.0.6", "192.168.0.1"])
async def test_a_gateway_at_either_end_or_elsewhere(timed: Database, gateway: str) -> None:
    usable = [f"10.0.0.{n}" for n in range(1, 7) if f"10.0.0.{n}" != gateway]
    assert [await reserve(timed, "10.0.0.0/29", "10.0.0.0", gateway) for _ in usable] == usable
    with pytest.raises(Conflict):
        await reserve(timed, "10.0.0.0/29", "10.0.0.0", gateway)


async def test_quarantine_holds_until_it_is_due(timed: Database, clock: Any) -> None:
    first = await reserve(timed, "10.0.0.0/30", "10.0.0.0", "10.0.0.2")
    async with timed.write() as tx:
        assert await addresses.quarantine(tx, first, tx.now + 1_000)
        assert not await addresses.quarantine(tx, "10.0.0.2", tx.now + 1_000)
    clock.advance(999)
    with pytest.raises(Conflict):
        await reserve(timed, "10.0.0.0/30", "10.0.0.0", "10.0.0.2")
    clock.advance(1)
    assert await reserve(timed, "10.0.0.0/30", "10.0.0.0", "10.0.0.2") == first


async def test_order_is_by_number_not_by_text(timed: Database) -> None:
    for first in ("10.0.0.9", "10.0.0.10", "10.0.0.200"):
        await reserve(timed, "10.0.0.0/24", first)
    async with timed.read() as tx:
        assert [r.address for r in await addresses.list_(tx)] == ["10.0.0.9", "10.0.0.10", "10.0.0.200"]
    assert await reserve(timed, "10.0.0.0/24", "10.0.0.9") == "10.0.0.11"


async def test_ipv6_pools_work(timed: Database) -> None:
    assert await reserve(timed, "fd00:1::/64", "fd00:1::10", "fd00:1::11") == "fd00:1::10"
    assert await reserve(timed, "fd00:1::/64", "fd00:1::10", "fd00:1::11") == "fd00:1::12"


async def test_loopback_pools_of_the_lab_work(timed: Database) -> None:
    assert await reserve(timed, "127.20.0.0/16") == "127.20.0.11"


@given(prefix=st.integers(16, 30), base=st.integers(0, 2**16 - 1))
def test_the_default_beginning_lies_inside_every_pool(prefix: int, base: int) -> None:
    network = ipaddress.ip_network(((10 << 24) + (base << 8), prefix), strict=False)
    assert network.network_address < addresses.first_of(network) < network.broadcast_address
