"""Control values, and identifiers and tokens that only grow."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete

from flows.decide.placement import place
from flows.domain.intake import Creation, Ranges
from flows.domain.server import ContainerType
from flows.errors import BadInput, Conflict, NotFound
from flows.state import audit, control, intake
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


async def test_one_token_may_order_while_intake_is_closed(timed: Database, make: Any) -> None:
    """Until its pass ends; a pass that somebody else's took the place of ends nothing."""
    async with timed.write() as tx:
        customer = await make.customer(tx, plan="pro")
        await make.node(tx)
    order = Creation(customer.id, "admin:x", ContainerType.GAME, "fern", "fabric", "1", 1024, 1, 8, "n1", "h", token_id="mine")
    ranges = Ranges(10_000, 10_010, "10.20.0.0/24", "", "10.20.0.1", 1000)
    for token, taken in (("another", False), (None, False), ("mine", True)):
        async with timed.write() as tx:
            await control.set_intake_closed(tx, True, "flow", but="mine")
            assert await control.intake_closed(tx)
            if taken:
                await intake.create(tx, replace(order, token_id=token), place=place, ranges=ranges)
            else:
                with pytest.raises(Conflict, match="orders are taken"):
                    await intake.create(tx, replace(order, token_id=token), place=place, ranges=ranges)
    async with timed.write() as tx:
        assert not await control.end_pass(tx, "another", "flow", closed=False)
        assert await control.intake_closed(tx)
        assert await control.end_pass(tx, "mine", "flow", closed=True)
        with pytest.raises(Conflict, match="orders are taken"):
            await intake.create(tx, replace(order, nonce="n2", name="moss"), place=place, ranges=ranges)


@given(st.uuids(), st.uuids())
def test_a_pass_is_neither_open_nor_closed_and_fits_the_column(one: uuid.UUID, other: uuid.UUID) -> None:
    assert 2 <= control.pass_of(str(one)) < 2**63
    assert (control.pass_of(str(one)) == control.pass_of(str(other))) == (one == other)


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
