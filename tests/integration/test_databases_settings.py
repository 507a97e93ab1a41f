"""What we need of a connection we set: the servers' defaults here are wrong on purpose (tests/support/servers.py)."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import func, select, text, update

from flows import bootstrap
from flows.errors import BadInput, Busy, Temporary, Unreachable
from flows.settings import load
from flows.state import audit, connections, customers
from flows.state import tables as t
from flows.state.database import Database
from tests.support.databases import SERVERS, kind, mariadb, postgresql, server, url
from tests.support.databases import _migrated as _migrated
from tests.support.servers import DatabaseServer

__all__ = ["kind", "mariadb", "postgresql", "server", "url"]

pytestmark = pytest.mark.parametrize("kind", SERVERS, indirect=True)

#: Variable: (the server's own, what every connection of ours must have).
WANTED = {
    "mariadb": {
        "time_zone": ("+05:30", "+00:00"),
        "tx_isolation": ("READ-UNCOMMITTED", "READ-COMMITTED"),
        "sql_mode": ("PIPES_AS_CONCAT,ANSI_QUOTES,NO_BACKSLASH_ESCAPES", connections.STRICT),
        "innodb_lock_wait_timeout": ("1", "7"),
        "lock_wait_timeout": ("86400", "7"),
        "idle_transaction_timeout": ("0", "60"),
        "max_statement_time": ("0.000000", "30.0"),
        "character_set_client": ("latin1", "utf8mb4"),
        "character_set_connection": ("latin1", "utf8mb4"),
        "character_set_results": ("latin1", "utf8mb4"),
    },
    "postgresql": {
        "timezone": ("Asia/Kolkata", "UTC"),
        "transaction_isolation": ("serializable", "read committed"),
        "datestyle": ("German, DMY", "ISO, MDY"),
        "lock_timeout": ("1ms", "7s"),
        "idle_in_transaction_session_timeout": ("0", "1min"),
        "statement_timeout": ("0", "30s"),
    },
}


@pytest.fixture
async def db(url: str) -> object:
    database = Database(url, busy_timeout_s=7)
    yield database
    await database.close()


async def _settings(tx: object, names: list[str], dialect: str) -> dict[str, str]:
    if dialect == "mysql":
        columns = ", ".join(f"@@session.{name} AS `{name}`" for name in names)
    else:
        columns = ", ".join(f"current_setting('{name}') AS \"{name}\"" for name in names)
    row = (await tx.execute(text(f"SELECT {columns}"))).one()  # type: ignore[attr-defined]  # a Tx
    # MariaDB tells the modes in an order of its own.
    return {name: ",".join(sorted(str(value).split(","))) if name == "sql_mode" else str(value) for name, value in row._mapping.items()}


async def test_every_connection_of_the_pool_has_our_settings(db: Database, kind: str, server: DatabaseServer) -> None:
    wanted = {name: ",".join(sorted(ours.split(","))) if name == "sql_mode" else ours for name, (_theirs, ours) in WANTED[kind].items()}
    for _ in range(2):  # new ones, and the same once more
        async with AsyncExitStack() as stack:
            together = [await stack.enter_async_context(db.write()) for _ in range(5)]
            for tx in together:
                assert await _settings(tx, list(wanted), tx.dialect) == wanted


async def test_they_are_not_the_servers_own(kind: str, server: DatabaseServer) -> None:
    """Else the test before would show nothing."""
    for name, (theirs, _ours) in WANTED[kind].items():
        said = server.sql(f"SHOW GLOBAL VARIABLES LIKE '{name}'" if kind == "mariadb" else f"SHOW {name}").split("\n")[0]
        assert said.split("\t")[-1] == theirs, name


async def test_times_are_utc_milliseconds(db: Database) -> None:
    before = time.time() * 1000
    async with db.write() as tx:
        made = await customers.add(tx, "Ada", "basic")
    after = time.time() * 1000
    async with db.read() as tx:
        kept = await customers.get(tx, made.id)
    assert kept is not None
    assert before - 5 <= kept.created_at <= after + 5


async def test_text_comes_back_as_it_went(db: Database) -> None:
    name = "Zoë 🎮 \\ ' \" % || :x"
    async with db.write() as tx:
        made = await customers.add(tx, name, "basic")
        await audit.append(tx, "admin:ü", "test", "x", detail={"name": name})
    async with db.read() as tx:
        kept = await customers.by_name(tx, name)
        line = (await audit.list_(tx))[0]
        assert await customers.by_name(tx, name.lower()) is None
    assert kept == made
    assert (line.actor, line.detail) == ("admin:ü", {"name": name})


async def test_a_value_that_does_not_fit_is_refused_and_not_cut(db: Database) -> None:
    for values in ({"plan": "x" * 65, "servers": 1}, {"plan": "x", "servers": 2**40}):
        with pytest.raises(BadInput, match="column"):
            async with db.write() as tx:
                await tx.execute(t.plan_limits.insert().values(memory_mb=1, disk_gb=1, backups=1, **values))
    async with db.read() as tx:
        assert (await tx.execute(select(func.count()).select_from(t.plan_limits))).scalar_one() == 2


async def test_a_reader_sees_one_moment_and_writes_nothing(db: Database) -> None:
    async with db.read() as tx:
        assert await customers.list_(tx) == []
        async with db.write() as other:
            await customers.add(other, "Ada", "basic")
        assert await customers.list_(tx) == []
    async with db.read() as tx:
        assert [c.name for c in await customers.list_(tx)] == ["Ada"]
    with pytest.raises(Temporary):
        async with db.read() as tx:
            await customers.add(tx, "Bob", "basic")


async def test_a_readers_moment_begins_with_the_transaction(db: Database) -> None:
    async with db.read() as tx:
        async with db.write() as other:
            await customers.add(other, "Ada", "basic")
        assert await customers.list_(tx) == []


async def test_a_writer_that_waited_sees_what_it_waited_for(db: Database) -> None:
    order: list[str] = []

    async def second() -> int:
        async with db.write() as tx:
            await tx.execute(select(t.plan_limits).where(t.plan_limits.c.plan == "basic").with_for_update())
            order.append("second")
            return len(await customers.list_(tx))

    async with db.write() as tx:
        await tx.execute(select(t.plan_limits).where(t.plan_limits.c.plan == "basic").with_for_update())
        waiting = asyncio.create_task(second())
        await asyncio.wait([waiting], timeout=0.3)  # long enough to get in, were it possible
        await customers.add(tx, "Ada", "basic")
        order.append("first")
    assert await waiting == 1
    assert order == ["first", "second"]


async def test_a_wait_for_a_lock_has_an_end(db: Database, url: str) -> None:
    impatient = Database(url, busy_timeout_s=1)
    async with db.write() as tx:
        await tx.execute(update(t.plan_limits).values(backups=1))
        with pytest.raises(Busy, match="try again"):
            async with impatient.write() as other:
                await other.execute(update(t.plan_limits).values(backups=2))
    await impatient.close()


async def test_a_transaction_of_a_process_that_stands_still_ends_with_its_epoch(url: str, kind: str) -> None:
    """It may have locked the epoch's row, and whoever comes next waits for that."""
    settings = load({"ZLH_DATABASE__URL": url, "ZLH_TIMING__EPOCH_S": "7"})
    database = bootstrap.database(settings)
    name = "idle_transaction_timeout" if kind == "mariadb" else "idle_in_transaction_session_timeout"
    async with database.read() as tx:
        assert await _settings(tx, [name], tx.dialect) == {name: "7" if kind == "mariadb" else "7s"}
    await database.close()


async def test_a_transaction_that_stands_still_is_ended_and_its_locks_are_free(url: str) -> None:
    still, other = Database(url, idle_s=1), Database(url)
    with pytest.raises(Unreachable):
        async with still.write() as tx:
            await tx.execute(update(t.plan_limits).values(backups=1))
            async with other.write() as wins:
                await wins.execute(update(t.plan_limits).values(backups=2))
            await tx.execute(update(t.plan_limits).values(servers=1))
    async with still.read() as tx:  # and its pool recovers
        assert set((await tx.execute(select(t.plan_limits.c.backups))).scalars()) == {2}
    await still.close()
    await other.close()


async def test_a_statement_has_an_end(url: str, kind: str) -> None:
    database = Database(url, answer_s=0.5)
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="overloaded"):
        async with database.read() as tx:
            await tx.execute(text("SELECT SLEEP(20)" if kind == "mariadb" else "SELECT pg_sleep(20)"))
    assert time.monotonic() - begun < 10
    async with database.read() as tx:
        assert await customers.list_(tx) == []
    await database.close()


async def test_a_server_that_stands_still_is_unreachable_and_then_itself_again(
    url: str, server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECT_S", 1)
    monkeypatch.setattr(connections, "GRACE_S", 0.5)
    database = Database(url, answer_s=0.5)
    async with database.write() as tx:
        await customers.add(tx, "Ada", "basic")
    server.freeze()
    try:
        for _ in range(2):  # with the connection of the pool, and with a new one
            begun = time.monotonic()
            with pytest.raises(Unreachable):
                async with database.read() as tx:
                    await customers.list_(tx)
            assert time.monotonic() - begun < 10
    finally:
        server.thaw()
    async with asyncio.timeout(20):
        async with database.read() as tx:
            assert [c.name for c in await customers.list_(tx)] == ["Ada"]
    await database.close()
