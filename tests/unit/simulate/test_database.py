"""SQLite in the loop: transactions of the living, of the dead, and of those that stand still."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select

from flows.errors import Unreachable
from flows.simulate.database import IDLE_S, Store
from flows.simulate.loop import Process, VirtualLoop
from flows.state.database import Database

META = MetaData()
T = Table("things", META, Column("id", Integer, primary_key=True))


def store(loop: VirtualLoop, tmp_path: Path) -> Store:
    made = Store(loop, str(tmp_path / "s.db"), 1)

    async def tables() -> None:
        async with made.database().write() as tx:
            await tx.conn.run_sync(META.create_all)

    loop.run_until_complete(tables())
    return made


async def put(database: Database, n: int, wait: float = 0.0) -> None:
    async with database.write() as tx:
        await tx.execute(insert(T).values(id=n))
        await asyncio.sleep(wait)


async def rows(database: Database) -> list[int]:
    async with database.read() as tx:
        return [row.id for row in await tx.execute(select(T).order_by(T.c.id))]


def test_the_clock_is_virtual(loop: VirtualLoop, tmp_path: Path) -> None:
    s = store(loop, tmp_path)

    async def main() -> int:
        async with s.database().read() as first:
            pass
        await asyncio.sleep(3600)
        async with s.database().read() as second:
            return second.now - first.now

    assert 3_600_000 <= loop.run_until_complete(main()) < 3_601_000


def test_death_in_a_transaction_rolls_it_back(loop: VirtualLoop, tmp_path: Path) -> None:
    s = store(loop, tmp_path)
    p = Process("p", "h", "test", 0)
    p.on_death.append(lambda: s.orphaned(p))

    async def main() -> list[int]:
        loop.spawn(p, put(s.database(), 1, wait=60))
        await asyncio.sleep(5)
        loop.kill(p)
        await put(s.database(), 2)
        return await rows(s.database())

    assert loop.run_until_complete(main()) == [2]


def test_writers_queue_in_virtual_time(loop: VirtualLoop, tmp_path: Path) -> None:
    s = store(loop, tmp_path)

    async def main() -> list[int]:
        await asyncio.gather(put(s.database(), 1, wait=2), put(s.database(), 2, wait=2), put(s.database(), 3))
        return await rows(s.database())

    assert loop.run_until_complete(main()) == [1, 2, 3]
    assert loop.time() > 4


def test_a_standing_transaction_is_ended_by_the_server(loop: VirtualLoop, tmp_path: Path) -> None:
    s = store(loop, tmp_path)
    p, failed = Process("p", "h", "test", 0), list[str]()

    async def work() -> None:
        try:
            await put(s.database(), 1, wait=5)
        except Unreachable as error:
            failed.append(error.why)

    async def main() -> list[int]:
        loop.spawn(p, work())
        await asyncio.sleep(1)
        loop.stand(p, IDLE_S * 3)
        s.stands(p)
        await asyncio.sleep(IDLE_S + 1)
        await put(s.database(), 2)
        await asyncio.sleep(IDLE_S * 3)
        return await rows(s.database())

    assert loop.run_until_complete(main()) == [2]
    assert failed


def test_an_answer_to_a_commit_may_be_lost(loop: VirtualLoop, tmp_path: Path) -> None:
    s = store(loop, tmp_path)
    p = Process("p", "h", "test", 0)

    async def main() -> list[int]:
        s.lose_answer = 1
        task = loop.spawn(p, put(s.database(), 1))
        with pytest.raises(Unreachable):
            await task
        return await rows(s.database())

    assert loop.run_until_complete(main()) == [1]


def test_a_restart_loses_what_is_open_and_refuses_for_a_while(loop: VirtualLoop, tmp_path: Path) -> None:
    s = store(loop, tmp_path)

    async def main() -> list[int]:
        task = asyncio.create_task(put(s.database(), 1, wait=5))
        await asyncio.sleep(1)
        s.restart(3)
        with pytest.raises(Unreachable):
            await task
        await asyncio.sleep(5)
        await put(s.database(), 2)
        return await rows(s.database())

    assert loop.run_until_complete(main()) == [2]


def test_commits_are_told_by_table(loop: VirtualLoop, tmp_path: Path) -> None:
    s = store(loop, tmp_path)
    heard: list[frozenset[str]] = []
    s.told = lambda process, tables: heard.append(tables)
    loop.run_until_complete(put(s.database(), 1))
    loop.run_until_complete(rows(s.database()))
    assert heard == [frozenset({"things"})]
