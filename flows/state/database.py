"""Transactions on the one database. ``now`` in a transaction is the database's clock, read at its begin.

SQLite: WAL, writers begin with ``BEGIN IMMEDIATE`` behind a fair queue of the process, so that a burst waits in
order; between processes the file lock is polled (:mod:`flows.state.patience`). Servers: READ COMMITTED and UTC, set by us and not by their defaults.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, event, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from flows.errors import Busy, Conflict, Fenced, MisconfiguredSetting, Temporary, Unreachable
from flows.state import patience
from flows.state import tables as t
from flows.state.threaded import Hooks, ThreadedWriter
from flows.state.url import FORM, SETTING, checked

T = TypeVar("T")

#: The database's own clock, in milliseconds since 1970.
NOW = {
    # Looks at the file, too: a reader's view begins here and not later.
    "sqlite": "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER), EXISTS (SELECT 1 FROM sqlite_master)",
    "mysql": "SELECT CAST(UNIX_TIMESTAMP(UTC_TIMESTAMP(3)) * 1000 AS SIGNED)",
    "postgresql": "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
}


@dataclass(frozen=True, slots=True)
class Tx:
    """An open transaction. ``now``: milliseconds by the database's clock.

    ``always`` holds what must be written whether the transaction commits or not (the audit line of a refusal): before a
    commit in the same transaction, after a rollback in one of its own.
    """

    conn: AsyncConnection
    now: int
    always: list[Callable[[Tx], Awaitable[None]]] = field(default_factory=list)

    @property
    def dialect(self) -> str:
        return self.conn.dialect.name

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        return await self.conn.execute(statement, parameters)


class ThreadTx(Tx):
    """A transaction in the writer's thread (:meth:`Database.apply`): the same functions, on a connection that needs no loop."""

    def __init__(self, conn: Connection, now: int) -> None:
        super().__init__(conn, now)  # type: ignore[arg-type]  # nothing but execute() and dialect is used of it on SQLite

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        return self.conn.execute(statement, parameters)


class Database:
    """One engine. ``clock`` replaces the database's clock where time itself is simulated."""

    def __init__(
        self,
        url: str | URL,
        *,
        busy_timeout_s: float = 10.0,
        pool_size: int = 5,
        clock: Callable[[], int] | None = None,
        async_creator: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        self.url = _parsed(url)
        self._clock = clock
        self._busy = busy_timeout_s
        self._writers = asyncio.Lock()
        options: dict[str, Any] = {}
        if self.sqlite:
            options["connect_args"] = {"timeout": 0}  # flows.state.patience
        else:
            options |= {"pool_size": pool_size, "pool_pre_ping": True, "isolation_level": "READ COMMITTED", "pool_timeout": busy_timeout_s}
        if async_creator is not None:
            options["async_creator"] = async_creator
        self._threaded: ThreadedWriter | None = None
        if self.sqlite and async_creator is None and self.url.database not in (None, "", ":memory:"):
            self._threaded = ThreadedWriter(self.url, busy_timeout_s, Hooks(_sqlite_connect, _sqlite_begin, self._now_sync, ThreadTx))
        self.engine: AsyncEngine = create_async_engine(self.url, **options)
        if self.sqlite:
            event.listen(self.engine.sync_engine, "connect", _sqlite_connect)
            event.listen(self.engine.sync_engine, "begin", _sqlite_begin)
        elif self.engine.dialect.name == "mysql":
            event.listen(self.engine.sync_engine, "connect", _mysql_connect)

    @property
    def sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    async def close(self) -> None:
        await self.engine.dispose()
        if self._threaded is not None:
            await self._threaded.close()

    def _now_sync(self, conn: Connection) -> int:
        if self._clock is not None:
            return self._clock()
        return int(conn.exec_driver_sql(NOW["sqlite"]).one()[0])

    async def _now(self, conn: AsyncConnection) -> int:
        if self._clock is not None:
            return self._clock()
        return int((await conn.exec_driver_sql(NOW[conn.dialect.name])).one()[0])

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        """A consistent view; nothing is written. Raises Unreachable."""
        try:
            async with AsyncExitStack() as stack:
                yield await self._open(stack, writing=False)
        except (DBAPIError, PoolTimeout, OSError) as error:
            raise translated(error) from error

    @asynccontextmanager
    async def write(self, *, epoch: int | None = None) -> AsyncIterator[Tx]:
        """One transaction. With ``epoch`` it is refused (Fenced) under a newer one, and the row stays locked until the commit.

        Raises Unreachable, Conflict (a uniqueness was violated) and whatever the body raises; on any of them nothing is written,
        but for Unreachable at the commit itself, where the caller must look again.
        """
        try:
            if self.sqlite:
                async with self._writers, self._recorded(epoch) as tx:
                    yield tx
            else:
                async with self._recorded(epoch) as tx:
                    yield tx
        except (DBAPIError, PoolTimeout, OSError) as error:
            raise translated(error) from error

    async def apply(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """:meth:`write` with the transaction as a function, which may await nothing but its own statements: on SQLite it then runs in one
        hop to a thread, several times faster. Raises what :meth:`write` raises."""
        if self._threaded is None:
            async with self.write() as tx:
                return await work(tx)
        try:
            async with self._writers:
                return await self._threaded.run(work)
        except (DBAPIError, PoolTimeout, OSError) as error:
            raise translated(error) from error

    @asynccontextmanager
    async def _recorded(self, epoch: int | None) -> AsyncIterator[Tx]:
        """A transaction, and what it must leave behind (``Tx.always``) however it ends."""
        left: list[Callable[[Tx], Awaitable[None]]] = []
        try:
            async with self._begin(epoch) as tx:
                left = tx.always
                yield tx
                for write in left:
                    await write(tx)
        except Exception:  # raised again: only what must be written is added
            if left:
                async with self._begin(None) as tx:
                    for write in left:
                        await write(tx)
            raise

    @asynccontextmanager
    async def _begin(self, epoch: int | None) -> AsyncIterator[Tx]:
        async with AsyncExitStack() as stack:
            tx = await self._open(stack, writing=True)
            if epoch is not None:
                await _guard(tx, epoch)
            yield tx

    async def _open(self, stack: AsyncExitStack, *, writing: bool) -> Tx:
        """A begun transaction, which ends with ``stack``. Waits for SQLite's lock, ``busy_timeout_s`` at most."""
        pauses = patience.pauses(self._busy, asyncio.get_running_loop().time)
        while True:
            async with AsyncExitStack() as attempt:
                try:
                    conn = await attempt.enter_async_context(self.engine.connect())
                    if self.sqlite and writing:
                        conn = await conn.execution_options(zlh_write=True)
                    await attempt.enter_async_context(conn.begin())
                    tx = Tx(conn, await self._now(conn))
                except OperationalError as error:
                    pause = next(pauses, None) if self.sqlite and patience.locked(error) else None
                    if pause is None:
                        raise
                else:
                    await stack.enter_async_context(attempt.pop_all())
                    return tx
            await asyncio.sleep(pause)


def _parsed(url: str | URL) -> URL:
    if isinstance(url, URL):
        return url
    checked(url)
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # their texts may quote the password
        remedy = f"{FORM}; special characters of a password are percent-encoded"
        raise MisconfiguredSetting(SETTING, why="cannot be read as an URL", remedy=remedy) from None


async def _guard(tx: Tx, epoch: int) -> None:
    row = (await tx.execute(select(t.epochs.c.epoch).where(t.epochs.c.name == "reconcile").with_for_update(read=True))).one_or_none()
    if row is None or row.epoch != epoch:
        raise Fenced("sweep", why=f"epoch {epoch} was superseded by {row.epoch if row else 'none'}")


#: What servers say when two transactions got in each other's way and one was given up: MariaDB's numbers, PostgreSQL's states.
_COLLISIONS = frozenset({1205, 1213, "40001", "40P01"})
#: A table that is not there: MariaDB's number, PostgreSQL's state. SQLite has words alone.
_NO_TABLE = frozenset({1146, "42P01"})
#: MariaDB's violated constraint, which its driver does not count among integrity errors.
_CONSTRAINTS = frozenset({4025})


def translated(error: BaseException) -> Exception:
    """A vendor's database error in our own terms."""
    orig = getattr(error, "orig", None)
    codes = {getattr(orig, "sqlstate", None), *getattr(orig, "args", ())[:1]}  # MariaDB's driver gives both, and only the number is exact
    if isinstance(error, IntegrityError) or codes & _CONSTRAINTS:
        return Conflict("database", why=str(orig))
    if codes & _COLLISIONS:
        return Busy("database", why=str(orig), remedy="nothing was written: try again", retry_after=1.0)
    if codes & _NO_TABLE or "no such table" in str(orig):
        return Unreachable("database", why=str(orig), remedy="zlh migrate makes the tables; is ZLH_DATABASE__URL the right one?")
    if isinstance(error, OperationalError | PoolTimeout | OSError) or getattr(error, "connection_invalidated", False):
        return Unreachable("database", why=str(getattr(error, "orig", error)), remedy="check ZLH_DATABASE__URL and the server")
    return Temporary("database", why=str(getattr(error, "orig", error)))


def _sqlite_connect(connection: Any, record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(conn: Any) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get("zlh_write") else "BEGIN")


def _mysql_connect(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("SET time_zone = '+00:00', innodb_lock_wait_timeout = 10")
    cursor.close()


async def ping(database: Database) -> int:
    """The database's clock, or Unreachable."""
    async with database.read() as tx:
        await tx.execute(text("SELECT 1"))
        return tx.now
