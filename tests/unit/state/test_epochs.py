"""The one row that says who may sweep: exclusive, fenced, never counting backwards."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import delete, update

from flows.errors import Fenced
from flows.state import epochs
from flows.state import tables as t
from flows.state.database import Database

TTL = 30_000


async def test_the_first_sweep_takes_the_row_and_a_second_waits(timed: Database, clock: Any) -> None:
    first = await epochs.begin(timed, "a", TTL)
    assert first is not None
    assert first >= clock.now
    assert await epochs.begin(timed, "b", TTL) is None
    await epochs.end(timed, first, "a")
    second = await epochs.begin(timed, "b", TTL)
    assert second is not None
    assert second > first


async def test_a_missing_row_is_created(timed: Database) -> None:
    async with timed.write() as tx:
        await tx.execute(delete(t.epochs))
    assert await epochs.begin(timed, "a", TTL) is not None
    assert await epochs.begin(timed, "b", TTL) is None


async def test_an_epoch_expires_only_after_its_time(timed: Database, clock: Any) -> None:
    first = await epochs.begin(timed, "a", TTL)
    assert first is not None
    clock.advance(TTL)
    assert await epochs.begin(timed, "b", TTL) is None
    clock.advance(1)
    second = await epochs.begin(timed, "b", TTL)
    assert second is not None
    with pytest.raises(Fenced):
        await epochs.renew(timed, first, "a", TTL)
    with pytest.raises(Fenced):
        await epochs.end(timed, first, "a")
    async with timed.read() as tx:
        assert await epochs.current(tx) == (second, "b", clock.now + TTL)


async def test_a_clock_that_is_set_back_keeps_nobody_out(timed: Database, clock: Any) -> None:
    """By more than an expiry: one that was renewed in what is the future by now is over, whoever died with it. By less, it may still be held."""
    first = await epochs.begin(timed, "a", TTL)
    assert first is not None
    clock.advance(-TTL)
    assert await epochs.begin(timed, "b", TTL) is None
    clock.advance(-1)
    second = await epochs.begin(timed, "b", TTL)
    assert second is not None and second > first
    with pytest.raises(Fenced):
        await epochs.renew(timed, first, "a", TTL)


async def test_controllers_with_other_expiries_agree_on_whose_time_is_over(timed: Database, clock: Any) -> None:
    """A holder's long expiry is not a clock that was set back, however short the newcomer's own is."""
    first = await epochs.begin(timed, "a", 100 * TTL)
    assert first is not None
    assert await epochs.begin(timed, "b", TTL) is None
    clock.advance(-TTL - 1)
    assert await epochs.begin(timed, "b", TTL) is None
    await epochs.renew(timed, first, "a", 100 * TTL)


async def test_renewing_keeps_others_out(timed: Database, clock: Any) -> None:
    epoch = await epochs.begin(timed, "a", TTL)
    assert epoch is not None
    for _ in range(5):
        clock.advance(TTL - 1)
        await epochs.renew(timed, epoch, "a", TTL)
        assert await epochs.begin(timed, "b", TTL) is None


async def test_the_same_epoch_under_another_name_is_fenced(timed: Database) -> None:
    epoch = await epochs.begin(timed, "a", TTL)
    assert epoch is not None
    with pytest.raises(Fenced):
        await epochs.renew(timed, epoch, "impostor", TTL)


async def test_a_restored_database_cannot_count_backwards(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:  # as if a faster clock had written it
        await tx.execute(update(t.epochs).values(epoch=clock.now + 1_000_000, holder=None))
    assert await epochs.begin(timed, "a", TTL) == clock.now + 1_000_001


async def test_a_superseded_sweep_writes_nothing(timed: Database, clock: Any) -> None:
    first = await epochs.begin(timed, "a", TTL)
    assert first is not None
    async with timed.write(epoch=first):
        pass
    clock.advance(TTL + 1)
    await epochs.begin(timed, "b", TTL)
    with pytest.raises(Fenced):
        async with timed.write(epoch=first):
            pytest.fail("the body of a fenced transaction ran")


async def test_of_twenty_at_once_one_begins(open_db: Any) -> None:
    databases = [open_db() for _ in range(4)]
    found = await asyncio.gather(*(epochs.begin(databases[i % 4], f"h{i}", TTL) for i in range(20)))
    assert sum(epoch is not None for epoch in found) == 1


class EpochModel(RuleBasedStateMachine):
    """Whatever holders do and however time passes: one holder at a time, epochs grow, the superseded are fenced."""

    @initialize()
    def begin_world(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.dir = tempfile.TemporaryDirectory()
        self.now = 1_000_000
        self.db = Database(f"sqlite+aiosqlite:///{Path(self.dir.name) / 'zlh.db'}", clock=lambda: self.now)
        self.loop.run_until_complete(self._create())
        self.held: tuple[int, str, int] | None = None  # epoch, holder, expires
        self.seen: list[tuple[int, str]] = []

    async def _create(self) -> None:
        async with self.db.engine.begin() as conn:
            await conn.run_sync(t.metadata.create_all)

    @rule(ms=st.integers(0, 2 * TTL))
    def pass_time(self, ms: int) -> None:
        self.now += ms

    @rule(holder=st.sampled_from("abc"))
    def begin(self, holder: str) -> None:
        free = self.held is None or self.held[2] < self.now
        epoch = self.loop.run_until_complete(epochs.begin(self.db, holder, TTL))
        assert (epoch is not None) == free
        if epoch is not None:
            assert all(epoch > before for before, _ in self.seen)
            self.held = (epoch, holder, self.now + TTL)
            self.seen.append((epoch, holder))

    @rule(data=st.data(), end=st.booleans())
    def renew_or_end(self, data: st.DataObject, end: bool) -> None:
        if not self.seen:
            return
        epoch, holder = data.draw(st.sampled_from(self.seen))
        ours = self.held is not None and self.held[:2] == (epoch, holder)
        work = epochs.end(self.db, epoch, holder) if end else epochs.renew(self.db, epoch, holder, TTL)
        try:
            self.loop.run_until_complete(work)
        except Fenced:
            assert not ours
            return
        assert ours
        self.held = None if end else (epoch, holder, self.now + TTL)

    @invariant()
    def only_the_newest_may_write(self) -> None:
        newest = max((epoch for epoch, _ in getattr(self, "seen", [])), default=None)
        for epoch, _ in getattr(self, "seen", [])[-3:]:
            assert self.loop.run_until_complete(self._writes(epoch)) == (epoch == newest)

    async def _writes(self, epoch: int) -> bool:
        try:
            async with self.db.write(epoch=epoch):
                return True
        except Fenced:
            return False

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.run_until_complete(self.db.close())
            self.loop.close()
            self.dir.cleanup()


TestEpochModel = EpochModel.TestCase
TestEpochModel.settings = settings(max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
