"""Control values, and identifiers and tokens that only grow."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete

from flows.errors import BadInput, NotFound
from flows.state import audit, control
from flows.state import tables as t
from flows.state.database import Database
from flows.state.ids import new_id, next_token


async def test_the_generation_only_grows_and_follows_the_clock(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        first = await control.generation(tx)
        second = await control.raise_generation(tx, "admin:restore")
        assert second == max(first + 1, clock.now)
        assert await control.generation(tx, lock=True) == second
    clock.now = second + 10_000
    async with timed.write() as tx:
        assert await control.raise_generation(tx, "admin:restore") == clock.now
        assert len(await audit.list_(tx, action="generation.raised")) == 2


async def test_without_rows_there_is_no_generation_but_one_can_be_raised(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        await tx.execute(delete(t.control))
        with pytest.raises(NotFound, match="migrations"):
            await control.generation(tx)
        assert await control.repair_level(tx) == 1
        assert await control.raise_generation(tx, "admin") == clock.now
        assert await control.generation(tx) == clock.now


async def test_the_repair_level_is_one_until_somebody_says_otherwise(timed: Database) -> None:
    async with timed.write() as tx:
        assert await control.repair_level(tx) == 1
        await control.set_repair_level(tx, 2, "admin:olli")
        assert await control.repair_level(tx) == 2
        assert [(x.actor, x.detail) for x in await audit.list_(tx)] == [("admin:olli", {"to": 2})]
        for level in (-1, 4):
            with pytest.raises(BadInput):
                await control.set_repair_level(tx, level, "admin:olli")


async def test_intake(timed: Database) -> None:
    async with timed.write() as tx:
        assert not await control.intake_closed(tx)
        for closed in (True, False, True):
            await control.set_intake_closed(tx, closed, "admin:olli")
            assert await control.intake_closed(tx) == closed


@given(previous=st.integers(0, 2**62), now=st.integers(0, 2**62))
def test_the_next_token_is_greater_and_not_behind_the_clock(previous: int, now: int) -> None:
    token = next_token(previous, now)
    assert token > previous
    assert token >= now
    assert token in (previous + 1, now)


def test_ids_sort_by_their_creation() -> None:
    ids = [new_id() for _ in range(1_000)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(i).version for i in ids} == {7}
