"""``Database.apply``: a transaction given as a function, on SQLite carried whole by the writer's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select

from flows.errors import Conflict, Unreachable
from flows.state import audit, control, customers
from flows.state import tables as t
from flows.state.database import Database, Tx


async def names(db: Database) -> list[str]:
    async with db.read() as tx:
        return [c.name for c in await customers.list_(tx)]


async def test_it_commits_and_returns(db: Database) -> None:
    added = await db.apply(lambda tx: customers.add(tx, "Alice", "basic"))
    assert (added.name, await names(db)) == ("Alice", ["Alice"])


async def test_it_is_one_transaction(db: Database) -> None:
    async def twice(tx: Tx) -> None:
        await customers.add(tx, "Alice", "basic")
        await customers.add(tx, "Alice", "basic")

    with pytest.raises(Conflict):
        await db.apply(twice)
    assert await names(db) == []


@pytest.mark.parametrize("fails", [False, True])
async def test_what_must_be_left_behind_is_left_behind_once(db: Database, fails: bool) -> None:
    async def work(tx: Tx) -> None:
        await customers.add(tx, "Alice", "basic")
        tx.always.append(lambda after: audit.append(after, "test", "refused", "x"))
        if fails:
            raise Conflict("x")

    if fails:
        with pytest.raises(Conflict):
            await db.apply(work)
    else:
        await db.apply(work)
    async with db.read() as tx:
        assert [line.action for line in await audit.list_(tx, actor="test")] == ["refused"]
    assert await names(db) == ([] if fails else ["Alice"])


async def test_time_is_the_databases(timed: Database, clock: Any) -> None:
    async def now(tx: Tx) -> int:
        return tx.now

    assert await timed.apply(now) == clock.now
    clock.advance(1000)
    assert await timed.apply(now) == clock.now


async def test_all_the_writers_of_a_process_take_turns(db: Database) -> None:
    async def add(tx: Tx) -> int:
        value = await control.repair_level(tx)
        await tx.execute(t.control.update().where(t.control.c.name == "generation").values(value=t.control.c.value + 1))
        return value

    async def other() -> None:
        async with db.write() as tx:
            await add(tx)

    async with db.read() as tx:
        before = await control.generation(tx)
    await asyncio.gather(*(db.apply(add) if i % 2 else other() for i in range(30)))
    async with db.read() as tx:
        assert await control.generation(tx) == before + 30


async def test_two_processes_wait_for_each_other(open_db: Callable[..., Database]) -> None:
    one, two = open_db(), open_db()

    def add(name: str) -> Callable[[Tx], Awaitable[Any]]:
        return lambda tx: customers.add(tx, name, "basic")

    await asyncio.gather(*(db.apply(add(f"c{i}")) for i, db in enumerate([one, two] * 10)))
    assert len(await names(one)) == 20


async def test_a_caller_who_goes_away_does_not_tear_a_transaction(db: Database) -> None:
    if not db.sqlite:
        pytest.skip("only SQLite's runs in a thread")
    begun, go_on = threading.Event(), threading.Event()

    async def slow(tx: Tx) -> None:
        await customers.add(tx, "Alice", "basic")
        begun.set()
        go_on.wait(10)
        await customers.add(tx, "Bob", "basic")

    caller = asyncio.create_task(db.apply(slow))
    await asyncio.to_thread(begun.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()
    await db.apply(lambda tx: customers.add(tx, "Carol", "basic"))  # behind it, in order
    assert await names(db) == ["Alice", "Bob", "Carol"]


async def test_a_function_that_waits_for_the_loop_is_refused_and_leaves_nothing(db: Database) -> None:
    if not db.sqlite:
        pytest.skip("only SQLite's runs in a thread")

    async def waits(tx: Tx) -> None:
        await customers.add(tx, "Alice", "basic")
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="its own statements alone"):
        await db.apply(waits)
    assert await names(db) == []


async def test_an_unreachable_database_is_said_in_our_own_terms(db: Database) -> None:
    if not db.sqlite:
        pytest.skip("a file that is not there")
    gone = Database("sqlite+aiosqlite:////nonexistent/zlh.db")

    async def ask(tx: Tx) -> Any:
        return await tx.execute(select(t.control))

    with pytest.raises(Unreachable):
        await gone.apply(ask)
    await gone.close()


async def test_it_works_again_after_a_close(db: Database) -> None:
    await db.apply(lambda tx: customers.add(tx, "Alice", "basic"))
    await db.close()
    await db.apply(lambda tx: customers.add(tx, "Bob", "basic"))
    assert await names(db) == ["Alice", "Bob"]
