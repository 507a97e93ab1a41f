"""Transactions: all or nothing, but for what must be written either way; and vendor errors in our own terms."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from flows.domain.server import ServerState
from flows.errors import Busy, Conflict, Fenced, Temporary, Unreachable
from flows.state import audit, customers, servers
from flows.state import tables as t
from flows.state.database import Database, translated
from flows.state.unique import insert_unique


async def lines(db: Database) -> list[str]:
    async with db.read() as tx:
        return [x.action for x in await audit.list_(tx)]


async def test_an_error_undoes_everything(timed: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with timed.write() as tx:
            await customers.add(tx, "Ada", "basic")
            raise ZeroDivisionError
    async with timed.read() as tx:
        assert await customers.list_(tx) == []


async def test_what_must_be_written_is_written_either_way(timed: Database) -> None:
    async with timed.write() as tx:
        tx.always.append(lambda after: audit.append(after, "a", "committed", "x"))
    with pytest.raises(ZeroDivisionError):
        async with timed.write() as tx:
            await audit.append(tx, "a", "undone", "x")
            tx.always.append(lambda after: audit.append(after, "a", "refused", "x"))
            raise ZeroDivisionError
    assert await lines(timed) == ["refused", "committed"]


async def test_a_refusal_that_is_answered_in_another_way_is_on_record_too(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
    with pytest.raises(KeyError):
        async with timed.write() as tx:
            try:
                await servers.set_state(tx, server.id, ServerState.DELETING, "customer:c")
            except Conflict as refused:
                raise KeyError("409") from refused
    assert await lines(timed) == ["server.state.refused"]


async def test_a_taken_key_does_not_end_the_transaction(timed: Database) -> None:
    async with timed.write() as tx:
        row = {"plan": "basic", "servers": 0, "memory_mb": 0, "disk_gb": 0, "backups": 0}
        assert not await insert_unique(tx, t.plan_limits, row)
        assert await insert_unique(tx, t.plan_limits, row | {"plan": "gold"})
        await customers.add(tx, "Ada", "gold")
    async with timed.read() as tx:
        assert [c.plan for c in await customers.list_(tx)] == ["gold"]


async def test_a_newer_epoch_refuses(timed: Database) -> None:
    with pytest.raises(Fenced, match="superseded"):
        async with timed.write(epoch=17):
            pass


async def test_broken_uniqueness_is_a_conflict_and_a_wrong_statement_temporary(timed: Database) -> None:
    with pytest.raises(Conflict):
        async with timed.write() as tx:
            await tx.execute(text("INSERT INTO plan_limits VALUES ('basic', 0, 0, 0, 0)"))
    with pytest.raises(Temporary):
        async with timed.read() as tx:
            await tx.execute(text("SELECT nothing FROM nowhere"))


async def test_whoever_waits_for_the_lock_leaves_the_loop_free(db_url: str, open_db: Any) -> None:
    """A left-over cursor that is collected meanwhile must not stop everything: see flows.state.patience."""
    holder, waiter = open_db(), open_db(busy_timeout_s=5)
    if not holder.sqlite:
        pytest.skip("servers have row locks")
    kept: list[Any] = []
    with pytest.raises(Conflict) as refused:
        async with waiter.write() as tx:
            await tx.execute(text("INSERT INTO plan_limits VALUES ('basic', 0, 0, 0, 0)"))
    kept += [refused.value, kept]  # a cycle with the error's traceback, its cursor included
    del refused
    async with holder.write():
        waiting = asyncio.create_task(_write(waiter))
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        kept.clear()
        gc.collect()
        await asyncio.sleep(0.05)
        took = time.monotonic() - begun
        assert not waiting.done()
    assert took < 3  # of the five that a blocked loop would take
    await waiting


async def _write(db: Database) -> None:
    async with db.write() as tx:
        await customers.add(tx, "Ada", "basic")


@pytest.mark.parametrize("way", ["write", "apply"])
async def test_waiting_for_the_lock_has_an_end_and_then_it_is_free_again(open_db: Any, way: str) -> None:
    holder, waiter = open_db(), open_db(busy_timeout_s=0.1)
    if not holder.sqlite:
        pytest.skip("servers have row locks")

    async def nothing(_tx: Any) -> None: ...

    async def begin() -> None:
        if way == "apply":
            await waiter.apply(nothing)
        else:
            async with waiter.write():
                pass

    async with holder.write():
        with pytest.raises(Unreachable, match="locked"):
            await begin()
    await begin()


@pytest.mark.parametrize(
    ("orig", "kind"),
    [
        (Exception(1213, "Deadlock found"), Busy),
        (Exception(1205, "Lock wait timeout"), Busy),
        (Exception(4025, "audit is append-only"), Conflict),
        (Exception(2006, "gone away"), Unreachable),
    ],
)
@pytest.mark.parametrize("sqlstate", [None, "HY000"])
def test_servers_errors_in_our_own_terms(orig: Exception, kind: type[Exception], sqlstate: str | None) -> None:
    orig.sqlstate = sqlstate  # type: ignore[attr-defined]  # as the drivers do
    assert type(translated(OperationalError("SELECT 1", {}, orig))) is kind


async def test_a_database_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    db = Database(f"sqlite+aiosqlite:///{tmp_path}/no/such/dir/zlh.db")
    with pytest.raises(Unreachable, match="ZLH_DATABASE__URL"):
        async with db.read():
            pass
    await db.close()
    for thread in set(threading.enumerate()) - before:  # the driver's, which still answers to this loop after a connection that failed
        await asyncio.to_thread(thread.join, 10)
