"""A cancelled transaction leaves no lock behind, and a call of the driver ends before its cancellation is heard."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flows.state import audit
from flows.state.database import Database
from flows.state.migrate import upgrade
from flows.state.unbroken import unbroken


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[Path]:
    await upgrade(f"sqlite+aiosqlite:///{tmp_path}/zlh.db")
    yield tmp_path / "zlh.db"


async def _written(db: Database, pause_s: float) -> None:
    async with db.write() as tx:
        await audit.append(tx, "test", "first", "row")
        await asyncio.sleep(pause_s)
        await audit.append(tx, "test", "second", "row")


async def _read(db: Database, pause_s: float) -> None:
    async with db.read() as tx:
        await audit.list_(tx, limit=3)
        await asyncio.sleep(pause_s)


def _free(file: Path) -> bool:
    """Whether somebody else can write."""
    other = sqlite3.connect(file, timeout=5)
    try:
        other.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    else:
        return True
    finally:
        other.close()


@pytest.mark.parametrize("twice", [False, True])
async def test_transactions_that_are_cancelled_anywhere_leave_no_lock_and_no_half(file: Path, twice: bool) -> None:
    chance = random.Random(7)
    both = [Database(f"sqlite+aiosqlite:///{file}", busy_timeout_s=5) for _ in range(2)]
    for number in range(40):
        work = [chance.choice([_written, _written, _read])(chance.choice(both), chance.random() * 0.004) for _ in range(4)]
        tasks = [asyncio.create_task(one) for one in work]
        for _ in range(2 if twice else 1):
            await asyncio.sleep(chance.random() * 0.02)
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await asyncio.to_thread(_free, file), f"somebody holds the lock after round {number}"
    async with both[0].read() as tx:
        lines = [line.action for line in await audit.list_(tx, limit=10_000)]
    assert lines.count("first") == lines.count("second")
    for db in both:
        await db.close()


async def test_a_cancellation_waits_for_the_calls_end() -> None:
    ended = False

    async def call() -> int:
        nonlocal ended
        await asyncio.sleep(0.05)
        ended = True
        return 7

    assert await unbroken(call()) == 7
    ended = False
    task = asyncio.create_task(unbroken(call()))
    for _ in range(3):
        await asyncio.sleep(0.01)
        task.cancel()
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_a_time_limit_strikes_once_the_call_has_ended() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await unbroken(asyncio.sleep(0.05))


async def test_an_error_is_the_calls_own() -> None:
    async def call() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await unbroken(call())
