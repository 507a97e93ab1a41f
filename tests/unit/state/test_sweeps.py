"""Sweeps as the watchdog sees them."""

from __future__ import annotations

from typing import Any

import pytest

from flows.state import sweeps
from flows.state.database import Database
from flows.state.sweeps import SweepOutcome


async def sweep(db: Database, epoch: int, outcome: SweepOutcome | str | None) -> None:
    async with db.write() as tx:
        await sweeps.start(tx, epoch, "h")
        if outcome is not None:
            assert await sweeps.finish(tx, epoch, outcome, {"findings": 0})


async def test_none_at_all(timed: Database) -> None:
    async with timed.read() as tx:
        assert await sweeps.last(tx) is None
        assert await sweeps.last_finished(tx) is None


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [("clean", True), ("findings", True), ("paused", True), ("failed", False), ("superseded", False), (None, False)],
)
async def test_only_a_sweep_that_did_its_work_counts(timed: Database, clock: Any, outcome: str | None, counts: bool) -> None:
    await sweep(timed, 1, SweepOutcome.CLEAN)
    clock.advance(60_000)
    await sweep(timed, 2, outcome)
    async with timed.read() as tx:
        finished, last = await sweeps.last_finished(tx), await sweeps.last(tx)
    assert finished is not None
    assert finished.epoch == (2 if counts else 1)
    assert last is not None
    assert (last.epoch, last.outcome) == (2, outcome)


async def test_an_end_is_written_once(timed: Database) -> None:
    await sweep(timed, 1, "clean")
    async with timed.write() as tx:
        assert not await sweeps.finish(tx, 1, "failed")
        [row] = await sweeps.list_(tx)
        assert row.outcome is SweepOutcome.CLEAN
        assert row.summary == {"findings": 0}


async def test_an_unknown_outcome_is_refused(timed: Database) -> None:
    with pytest.raises(ValueError, match="splendid"):
        await sweep(timed, 1, "splendid")


async def test_old_ones_are_pruned(timed: Database, clock: Any) -> None:
    await sweep(timed, 1, "clean")
    clock.advance(1_000)
    await sweep(timed, 2, "clean")
    async with timed.write() as tx:
        assert await sweeps.prune(tx, tx.now) == 1
        assert [s.epoch for s in await sweeps.list_(tx)] == [2]
