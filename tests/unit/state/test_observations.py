"""Observations, sources and sightings: one statement for any number, the newest wins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from flows.domain.agent import Observation, WorkloadState
from flows.domain.snapshot import SourceFact
from flows.state import observations, sources
from flows.state.database import Database

SEEN = Observation("s1", 1_000, True, True, WorkloadState.RUNNING, 0, 0, "backup", 3, True, {"class": "oom"}, "")


async def test_the_newest_observation_replaces_the_one_before(timed: Database) -> None:
    other = Observation("s2", 1_000, False, None, None, misses=2, reason="connect timed out")
    async with timed.write() as tx:
        await observations.upsert(tx, [SEEN, other])
        assert await observations.all_(tx) == {"s1": SEEN, "s2": other}
        newer = Observation("s1", 2_000, False, None, None, misses=1, reason="gone")
        await observations.upsert(tx, [newer])
        assert await observations.get(tx, "s1") == newer
        await observations.forget(tx, "s1")
        assert await observations.get(tx, "s1") is None
        await observations.upsert(tx, [])


async def test_a_hostile_answer_fits_its_columns(timed: Database) -> None:
    async with timed.write() as tx:
        await observations.upsert(tx, [replace(SEEN, operation="x" * 999, reason="y" * 999)])
        found = await observations.get(tx, "s1")
    assert found is not None
    assert found.operation is not None
    assert (len(found.operation), len(found.reason)) == (64, 255)


@pytest.mark.parametrize("number", [1, 10_000])
async def test_any_number_is_one_statement(timed: Database, number: int) -> None:
    statements: list[str] = []
    rows = [replace(SEEN, server_id=f"s{n}") for n in range(number)]
    event.listen(timed.engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    async with timed.write() as tx:
        await observations.upsert(tx, rows)
        assert sum("observations" in s for s in statements) == 1
        assert len(await observations.all_(tx)) == number


async def test_sources_and_sightings_live_in_one_table_and_apart(timed: Database, clock: Any) -> None:
    proxmox, dns = SourceFact("proxmox", 2, 500, "rights"), SourceFact("dns", 0, 400)
    async with timed.write() as tx:
        await sources.upsert(tx, [proxmox, dns], {"proxy:game-x": 1, "dns:game-y": 2})
        assert await sources.all_(tx) == ({"proxmox": proxmox, "dns": dns}, {"proxy:game-x": 1, "dns:game-y": 2})
    clock.advance(60_000)
    async with timed.write() as tx:
        await sources.upsert(tx, [replace(proxmox, misses=3)], {"proxy:game-x": 2})
        assert await sources.all_(tx) == ({"proxmox": replace(proxmox, misses=3), "dns": dns}, {"proxy:game-x": 2})
        await sources.upsert(tx, [dns])
        assert (await sources.all_(tx))[1] == {"proxy:game-x": 2}, "not spoken of is not gone"
    clock.advance(1)
    async with timed.write() as tx:
        await sources.upsert(tx, [], {})
        assert (await sources.all_(tx))[1] == {}


async def test_sightings_within_one_millisecond_are_replaced_too(timed: Database) -> None:
    async with timed.write() as tx:
        await sources.upsert(tx, [], {"proxy:a": 1})
        await sources.upsert(tx, [], {"proxy:b": 1})
        assert (await sources.all_(tx))[1] == {"proxy:b": 1}
