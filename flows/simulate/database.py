"""SQLite in the loop: SQLAlchemy's synchronous engine under the product's own transactions, without a thread and without greenlets.

Every statement takes one turn of the loop, a begin and a commit some virtual milliseconds. A process that dies loses its open transactions
at once, as it would with its file descriptors; one that stands still longer than ``IDLE_S`` loses them to the server. ``Store`` is the
database of one simulation: a file, its clock, its outages, and who is told of commits.
"""

from __future__ import annotations

import asyncio
import copy
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from flows.simulate.keyed import Stream
from flows.simulate.loop import BARE, Process, VirtualLoop, here
from flows.simulate.statements import Statements
from flows.state import patience
from flows.state.database import Database, Look, Tx

T = TypeVar("T")

#: Milliseconds since 1970 at which every simulation begins: a Monday, 00:00 UTC.
EPOCH_MS = 1_767_571_200_000
#: Seconds after which the server ends a transaction whose process stands still.
IDLE_S = 60.0
_TABLE = re.compile(r"\s*(?:INSERT INTO|UPDATE|DELETE FROM|INSERT OR \w+ INTO)\s+\"?(\w+)", re.IGNORECASE)
_GONE = "no active connection"
Told = Callable[[Process | None, frozenset[str]], None]


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
        self._engine = create_engine(f"sqlite:///{path}", creator=self._connect, poolclass=NullPool)
        self.statements = Statements(self._engine.dialect)
        self._free: list[Session] = []
        self._template = InLoop(self)
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

    def session(self) -> Session:
        """A connection by demand. What a dead process had out never comes back, and nothing waits for it."""
        while self._free:
            session = self._free.pop()
            if session.dbapi.alive:
                return session
        return Session(self._engine.connect())

    def back(self, session: Session) -> None:
        if session.dbapi.alive:
            self._free.append(session)

    def _connect(self) -> Connection:
        raw = sqlite3.connect(self.path, isolation_level=None, timeout=0, check_same_thread=False, cached_statements=512)
        raw.execute("PRAGMA foreign_keys=ON")  # as flows.state.connections has it
        raw.execute("PRAGMA synchronous=OFF")  # what a power cut would leave is not simulated
        return Connection(self, raw)


class InLoop(Database):
    """The product's database, but for how a transaction is opened and ended."""

    def __init__(self, store: Store) -> None:
        super().__init__(f"sqlite+aiosqlite:///{store.path}", clock=store.now, async_creator=_never)
        self._store = store

    async def _open(self, *, writing: bool) -> tuple[Tx, AsyncExitStack]:
        store = self._store
        pauses = patience.pauses(self._busy, store.loop.time)
        while True:
            session = store.session()
            try:
                await session.dbapi.begin("BEGIN IMMEDIATE" if writing else "BEGIN")
            except sqlite3.OperationalError as error:
                session.end()
                wrapped = OperationalError("BEGIN", None, error)
                pause = next(pauses, None) if patience.locked(wrapped) else None
                if pause is None:
                    store.doubted("database")  # whoever stands still under the lock keeps what others know from being written
                    raise wrapped from error
            except BaseException:  # cancelled on the way: an open transaction would lock everybody out
                session.end()
                raise
            else:
                stack = AsyncExitStack()
                stack.push_async_exit(session.over)
                return (Tx if writing else Look)(session, store.now()), stack  # type: ignore[arg-type]  # all that is used of a connection
            await asyncio.sleep(pause)


async def _never() -> Any:
    raise AssertionError("the asynchronous engine is not used")


class Session:
    """Stands in for SQLAlchemy's ``AsyncConnection``, with an open transaction."""

    def __init__(self, conn: sqlalchemy.Connection) -> None:
        self._conn = conn
        dbapi: Any = conn.connection.dbapi_connection
        self.dbapi: Connection = dbapi
        self.dialect = conn.dialect

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        await BARE
        statements, dbapi = self.dbapi.store.statements, self.dbapi
        prepared = statements.prepared(statement, parameters)
        if prepared is None:
            return self._conn.execute(statement, parameters)
        return statements.execute(prepared, parameters, dbapi.run, dbapi.run_many)

    async def run_sync(self, work: Callable[..., T], *args: Any) -> T:
        return work(self._conn, *args)

    async def over(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Commits, or rolls back after an error. A commit that is under way goes on when whoever waits for it is cancelled."""
        dbapi = self.dbapi
        if kind is None and dbapi.written:
            await asyncio.shield(asyncio.get_running_loop().create_task(self._commit()))
        elif kind is None:
            await self._commit()
        else:
            self.end()

    async def _commit(self) -> None:
        try:
            await self.dbapi.end()
        except sqlite3.OperationalError as error:
            raise OperationalError("COMMIT", None, error) from error
        finally:
            self.end()

    def end(self) -> None:
        """Nothing of it stays open, and the connection may serve the next one."""
        self.dbapi.undo()
        if self._conn.in_transaction():  # SQLAlchemy's own notion of one
            self._conn.rollback()
        self.dbapi.store.back(self)


class Connection:
    """Stands in for ``sqlite3.Connection``. Transactions are begun and ended by :class:`Session`, in virtual time."""

    def __init__(self, store: Store, raw: sqlite3.Connection) -> None:
        self.store, self._conn = store, raw
        self.owner: Process | None = None
        self.alive = True
        self.written: set[str] = set()

    isolation_level = None

    def cursor(self) -> Cursor:
        return Cursor(self)

    def lost(self) -> None:
        """From outside: the open transaction is rolled back, and its owner finds the connection closed."""
        self.close()

    def run(self, sql: str, parameters: Sequence[Any]) -> sqlite3.Cursor:
        if not self.alive:
            raise sqlite3.OperationalError(_GONE)
        table = self.store.table(sql)
        cursor = self._conn.execute(sql, parameters)
        if table and cursor.rowcount != 0:
            self.written.add(table)
        return cursor

    def run_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        if not self.alive:
            raise sqlite3.OperationalError(_GONE)
        table = self.store.table(sql)
        cursor = self._conn.executemany(sql, rows)
        if table and cursor.rowcount != 0:
            self.written.add(table)
        return cursor

    async def begin(self, sql: str) -> None:
        store, process = self.store, here()
        await store.loop.nap(0.0002 + 0.002 * store.latency.next())
        why = store.refuses(process)
        if why:
            await store.loop.nap(0.5)
            raise sqlite3.OperationalError(why)
        if not self.alive:
            raise sqlite3.OperationalError(_GONE)
        self._conn.execute(sql)
        self.owner = process
        self.written.clear()
        store._open.add(self)
        if process is not None and process.at("tx:begin"):
            await BARE

    async def end(self) -> None:
        """The commit."""
        if not self.alive:
            raise sqlite3.OperationalError(_GONE)
        if not self._conn.in_transaction:
            return
        store, process = self.store, here()
        if self.written:
            if process is not None and process.at("tx:commit"):
                await BARE
            await store.loop.nap(0.0005 + 0.003 * store.latency.next())
            why = store.refuses(process)
            if why or not self.alive:
                self.lost()
                raise sqlite3.OperationalError(why or _GONE)
        tables = frozenset(self.written)
        if tables:
            store.before(process, tables)
        self._conn.execute("COMMIT")
        store._open.discard(self)
        self.owner = None
        if not tables:
            return
        self.written.clear()
        store.told(process, tables)
        if store.lose_answer and process is not None and process.kind != "person":
            store.lose_answer -= 1
            if not store.lose_answer:
                self.close()
                store.doubted("database")
                raise sqlite3.OperationalError(_GONE)
        if process is not None and process.at("tx:done"):
            await BARE

    def undo(self) -> None:
        if self.alive and self._conn.in_transaction:
            self._conn.execute("ROLLBACK")
        self.store._open.discard(self)
        self.owner = None
        self.written.clear()

    def commit(self) -> None:
        """SQLAlchemy's: :meth:`end` is the true one."""

    def rollback(self) -> None:
        """SQLAlchemy's: :meth:`undo` is the true one."""

    def create_function(self, *args: Any, **options: Any) -> None:
        self._conn.create_function(*args, **options)

    def close(self) -> None:
        self.alive = False
        self.store._open.discard(self)
        self.owner = None
        self.written.clear()
        self._conn.close()  # rolls back


class Cursor:
    """Stands in for ``sqlite3.Cursor``; a statement's rows are there at once, so that a later statement does not change them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.lastrowid: int | None = None
        self.rowcount = -1

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        raw = self._connection.run(sql, parameters)
        self.description, self.lastrowid, self.rowcount = raw.description, raw.lastrowid, raw.rowcount
        self._rows = raw.fetchall() if raw.description is not None else []

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        self.rowcount = max(0, self._connection.run_many(sql, rows).rowcount)

    def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    def fetchmany(self, size: int = 1) -> list[Any]:
        rows, self._rows = self._rows[:size], self._rows[size:]
        return rows

    def fetchone(self) -> Any:
        return self._rows.pop(0) if self._rows else None

    def close(self) -> None:
        self._rows = []
