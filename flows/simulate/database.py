"""SQLite in the loop: what SQLAlchemy's aiosqlite dialect asks of a connection, without its thread.

Every statement takes one turn of the loop, a begin and a commit some virtual milliseconds. A process that dies loses its open transactions
at once, as it would with its file descriptors; one that stands still longer than ``IDLE_S`` loses them to the server. ``Store`` is the
database of one simulation: a file, its clock, its outages, and who is told of commits.
"""

from __future__ import annotations

import asyncio
import copy
import re
import sqlite3
from collections.abc import Callable, Generator, Sequence
from typing import Any

from sqlalchemy.pool import Pool

from flows.simulate.keyed import Stream
from flows.simulate.loop import BARE, Process, VirtualLoop, here
from flows.state.database import Database

#: Milliseconds since 1970 at which every simulation begins: a Monday, 00:00 UTC.
EPOCH_MS = 1_767_571_200_000
#: Seconds after which the server ends a transaction whose process stands still.
IDLE_S = 60.0
_TABLE = re.compile(r"\s*(?:INSERT INTO|UPDATE|DELETE FROM|INSERT OR \w+ INTO)\s+\"?(\w+)", re.IGNORECASE)
Told = Callable[[Process | None, frozenset[str]], None]


class LeakyPool(Pool):
    """Connections by demand. What a dead process had out never comes back, and nothing waits for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._free: list[Any] = []

    _is_asyncio = True

    def _do_get(self) -> Any:
        return self._free.pop() if self._free else self._create_connection()

    def _do_return_conn(self, record: Any) -> None:
        self._free.append(record)

    def status(self) -> str:
        return f"{len(self._free)} free"

    def dispose(self) -> None:
        self._free.clear()

    def recreate(self) -> LeakyPool:
        return LeakyPool(self._creator)


class Store:
    """``down_until`` and ``cut`` are faults; ``skew_ms`` is what the database's clock has been moved by; ``told`` hears of each commit."""

    def __init__(self, loop: VirtualLoop, path: str, seed: int) -> None:
        self.loop, self.path = loop, path
        self.skew_ms = 0
        self.down_until = 0.0
        self.cut: Callable[[str], bool] = lambda host: False
        self.told: Told = lambda process, tables: None
        self.latency = Stream(seed, "database")
        self.doubted: Callable[[str], None] = lambda source: None
        self.before: Told = lambda process, tables: None
        self.lose_answer = 0  # commits until one whose answer is lost; 0: none
        self._open: set[Connection] = set()
        self._tables: dict[str, str] = {}
        self._template = Database(f"sqlite+aiosqlite:///{path}", clock=self.now, async_creator=self._connect, poolclass=LeakyPool)
        self.reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.reader.execute("PRAGMA query_only=1")

    def now(self) -> int:
        """The database's clock, ms."""
        return EPOCH_MS + int(self.loop.time() * 1000) + self.skew_ms

    def database(self) -> Database:
        """For one process: all share what was compiled, each queues its own writers."""
        database = copy.copy(self._template)
        database._writers = asyncio.Lock()
        return database

    def restart(self, seconds: float) -> None:
        """Every open transaction is lost; nothing connects for so long."""
        self.down_until = self.loop.time() + seconds
        for connection in list(self._open):
            connection.lost()

    def orphaned(self, process: Process) -> None:
        """Its file descriptors are closed."""
        for connection in list(self._open):
            if connection.owner is process:
                connection.lost()

    def stands(self, process: Process) -> None:
        """Called when a process begins to stand still."""
        pauses = process.pauses

        def idle() -> None:
            if process.paused and process.pauses == pauses:
                self.orphaned(process)

        self.loop.after(IDLE_S, idle)

    def refuses(self, process: Process | None) -> str:
        why = "no route to the database" if process is not None and self.cut(process.host) else ""
        if self.loop.time() < self.down_until:
            why = "the database restarts"
        if why:
            self.doubted("database")
        return why

    def table(self, sql: str) -> str:
        """The table that a statement writes; empty if it writes none."""
        found = self._tables.get(sql)
        if found is None:
            match = _TABLE.match(sql)
            found = self._tables[sql] = match[1] if match else ""
        return found

    async def _connect(self) -> Connection:
        return Connection(self, sqlite3.connect(self.path, isolation_level=None, timeout=0, check_same_thread=False, cached_statements=512))


class _Inbox:
    """Takes what the dialect would have its thread do, and does it."""

    def put_nowait(self, item: tuple[asyncio.Future[Any], Callable[[], Any]]) -> None:
        future, function = item
        future.set_result(function())


class Connection:
    """Stands in for ``aiosqlite.Connection``."""

    def __init__(self, store: Store, raw: sqlite3.Connection) -> None:
        self._store, self._conn, self._tx = store, raw, _Inbox()
        self.owner: Process | None = None
        self.alive = True
        self.written: set[str] = set()

    @property
    def isolation_level(self) -> str | None:
        return self._conn.isolation_level

    def cursor(self) -> Cursor:
        return Cursor(self)

    def lost(self) -> None:
        """From outside: the open transaction is rolled back, and its owner finds the connection closed."""
        self.stop()

    def run(self, sql: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
        if not self.alive:
            raise sqlite3.OperationalError("no active connection")
        table = self._store.table(sql)
        cursor = self._conn.execute(sql, parameters)
        if table and cursor.rowcount != 0:
            self.written.add(table)
        return cursor

    async def begin(self, sql: str) -> sqlite3.Cursor:
        store, process = self._store, here()
        await store.loop.nap(0.0002 + 0.002 * store.latency.next())
        why = store.refuses(process)
        if why:
            await store.loop.nap(0.5)
            raise sqlite3.OperationalError(why)
        if not self.alive:
            raise sqlite3.OperationalError("no active connection")
        cursor = self._conn.execute(sql)
        self.owner = process
        self.written.clear()
        store._open.add(self)
        if process is not None and process.at("tx:begin"):
            await BARE
        return cursor

    async def commit(self) -> None:
        if not self.alive:
            raise sqlite3.OperationalError("no active connection")
        if not self._conn.in_transaction:
            return
        store, process = self._store, here()
        if self.written:
            if process is not None and process.at("tx:commit"):
                await BARE
            await store.loop.nap(0.0005 + 0.003 * store.latency.next())
            why = store.refuses(process)
            if why or not self.alive:
                self.lost()
                raise sqlite3.OperationalError(why or "no active connection")
        tables = frozenset(self.written)
        if tables:
            store.before(process, tables)
        self._conn.execute("COMMIT")
        store._open.discard(self)
        if not tables:
            self.owner = None
            return
        self.written.clear()
        self.owner = None
        store.told(process, tables)
        if store.lose_answer and process is not None and process.kind != "person":
            store.lose_answer -= 1
            if not store.lose_answer:
                self.stop()
                store.doubted("database")
                raise sqlite3.OperationalError("no active connection")  # which is how the dialect knows that it is gone
        if process is not None and process.at("tx:done"):
            await BARE

    async def rollback(self) -> None:
        if self.alive and self._conn.in_transaction:
            self._conn.execute("ROLLBACK")
        self._store._open.discard(self)
        self.owner = None
        self.written.clear()

    async def create_function(self, *args: Any, **options: Any) -> None:
        self._conn.create_function(*args, **options)

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        cursor = Cursor(self)
        await cursor.execute(sql, parameters)
        return cursor

    async def close(self) -> None:
        self.stop()

    def stop(self) -> None:
        self.alive = False
        self._store._open.discard(self)
        self.owner = None
        self.written.clear()
        self._conn.close()  # rolls back


class Cursor:
    """Stands in for ``aiosqlite.Cursor``: to be awaited, or entered."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._raw: sqlite3.Cursor | None = None
        self.description: Any = None
        self.lastrowid: int | None = None
        self.rowcount = -1

    def __await__(self) -> Generator[Any, None, Cursor]:
        return self
        yield

    async def __aenter__(self) -> Cursor:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        if sql.startswith("BEGIN"):
            self._set(await self._connection.begin(sql))
            return
        await BARE
        self._set(self._connection.run(sql, parameters))

    async def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        await BARE
        done = 0
        for row in rows:
            done += max(0, self._connection.run(sql, row).rowcount)
        self.rowcount = done

    def _set(self, raw: sqlite3.Cursor) -> None:
        self._raw, self.description, self.lastrowid, self.rowcount = raw, raw.description, raw.lastrowid, raw.rowcount

    async def fetchall(self) -> list[Any]:
        return self._raw.fetchall() if self._raw is not None else []

    async def close(self) -> None:
        return None
