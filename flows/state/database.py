"""Transactions on the one database. ``now`` in a transaction is the database's clock, read at its begin.

SQLite: WAL, writers begin with ``BEGIN IMMEDIATE`` behind a fair queue of the process, so that a burst waits in
order; between processes the file lock is polled (:mod:`flows.state.patience`). Servers: what :mod:`flows.state.connections` sets, and not
their defaults: writers READ COMMITTED with row locks, readers one snapshot for the whole transaction.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import Pool

from flows.errors import Busy, Fenced, MisconfiguredSetting
from flows.state import connections, patience
from flows.state import tables as t
from flows.state.connections import NOW
from flows.state.failures import collided, translated
from flows.state.threaded import Hooks, ThreadedWriter
from flows.state.unbroken import unbroken
from flows.state.url import FORM, SETTING, checked

__all__ = ["NOW", "Database", "ThreadTx", "Tx", "ping", "translated"]

T = TypeVar("T")

#: How a call of the driver is awaited.
Whole = Callable[[Coroutine[Any, Any, T]], Awaitable[T]]


def bare(call: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """As it is: a server's driver says itself what a cancellation means."""
    return call


#: How often :meth:`Database.apply` runs a transaction again that collided with another one, and seconds of the longest first pause.
_AGAIN, _PAUSE_S = 5, 0.02


@dataclass(frozen=True, slots=True)
class Tx:
    """An open transaction. ``now``: milliseconds by the database's clock.

    ``always`` holds what must be written whether the transaction commits or not (the audit line of a refusal): before a
    commit in the same transaction, after a rollback in one of its own.
    """

    conn: AsyncConnection
    now: int
    always: list[Callable[[Tx], Awaitable[None]]] = field(default_factory=list)
    whole: Whole[Any] = bare

    @property
    def dialect(self) -> str:
        return self.conn.dialect.name

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        return await self.whole(self.conn.execute(statement, parameters))


class Look(Tx):
    """A transaction that only reads. It refuses to lock on every database alike: servers do (25006, 1792), and SQLite, which knows no row
    locks, would hide that."""

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        assert getattr(statement, "_for_update_arg", None) is None, "a row is locked in a transaction that only reads"
        return await self.whole(self.conn.execute(statement, parameters))


class ThreadTx(Tx):
    """A transaction in the writer's thread (:meth:`Database.apply`): the same functions, on a connection that needs no loop."""

    def __init__(self, conn: Connection, now: int) -> None:
        super().__init__(conn, now)  # type: ignore[arg-type]  # nothing but execute() and dialect is used of it on SQLite

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        return self.conn.execute(statement, parameters)


class Database:
    """One engine. ``clock`` replaces the database's clock where time itself is simulated, ``poolclass`` the pool where processes are.
    ``busy_timeout_s``: for a lock or a connection of the pool; ``answer_s``: for any one statement of a server, None without end; ``idle_s``:
    until a server ends a transaction whose process stands still."""

    def __init__(
        self,
        url: str | URL,
        *,
        busy_timeout_s: float = 10.0,
        pool_size: int = 5,
        answer_s: float | None = 30.0,
        idle_s: float | None = None,
        clock: Callable[[], int] | None = None,
        async_creator: Callable[[], Awaitable[Any]] | None = None,
        poolclass: type[Pool] | None = None,
    ) -> None:
        self.url = _parsed(url)
        self._clock = clock
        self._busy = busy_timeout_s
        self._errors: tuple[type[BaseException], ...] = (DBAPIError, PoolTimeout, OSError, *connections.errors(self.url.get_backend_name()))
        self._writers = asyncio.Lock()
        backend = self.url.get_backend_name()
        options: dict[str, Any] = {"connect_args": connections.options(backend, busy_timeout_s=busy_timeout_s, answer_s=answer_s, idle_s=idle_s)}
        if not self.sqlite:
            options |= {"pool_size": pool_size, "pool_pre_ping": True, "isolation_level": "READ COMMITTED", "pool_timeout": busy_timeout_s}
        if async_creator is not None:
            options["async_creator"] = async_creator
        if poolclass is not None:
            options["poolclass"] = poolclass
        #: A simulated database's calls are no thread's.
        self._whole: Whole[Any] = unbroken if self.sqlite and async_creator is None else bare
        self._threaded: ThreadedWriter | None = None
        if self.sqlite and async_creator is None and self.url.database not in (None, "", ":memory:"):
            self._threaded = ThreadedWriter(
                self.url, busy_timeout_s, Hooks(connections.sqlite_connect, connections.sqlite_begin, self._now_sync, ThreadTx)
            )
        self.engine: AsyncEngine = create_async_engine(self.url, **options)
        connections.prepare(self.engine.sync_engine)

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
        with self._in_our_terms():
            async with self._opened(writing=False) as tx:
                yield tx

    @asynccontextmanager
    async def write(self, *, epoch: int | None = None) -> AsyncIterator[Tx]:
        """One transaction. With ``epoch`` it is refused (Fenced) under a newer one, and the row stays locked until the commit.

        Raises Unreachable, Conflict (a uniqueness was violated) and whatever the body raises; on any of them nothing is written,
        but for Unreachable at the commit itself, where the caller must look again.
        """
        with self._in_our_terms():
            if self.sqlite:
                async with self._writers, self._recorded(epoch) as tx:
                    yield tx
            else:
                async with self._recorded(epoch) as tx:
                    yield tx

    async def apply(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """:meth:`write` with the transaction as a function, which may await nothing but its own statements: on SQLite it then runs in one
        hop to a thread, several times faster; on a server it runs again after a deadlock, where nothing of it was written. Raises what
        :meth:`write` raises."""
        if self._threaded is None:
            return await self._repeated(work)
        with self._in_our_terms():
            async with self._writers:
                return await self._threaded.run(work)

    @contextmanager
    def _in_our_terms(self) -> Iterator[None]:
        """Errors as :func:`translated`; a cancellation stays one. asyncmy turns one that strikes within a call into an error of its own, and the
        pool takes that for a connection which is gone and makes another: whoever waits for the end of a task that he cancelled would wait for
        ever, and a time limit would never strike."""
        before = _cancellations()
        try:
            yield
        except self._errors as error:
            raise (asyncio.CancelledError() if _cancellations() > before else translated(error)) from error
        if _cancellations() > before:
            raise asyncio.CancelledError

    async def _repeated(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        pause = _PAUSE_S
        for last in (*[False] * _AGAIN, True):
            try:
                async with self.write() as tx:
                    return await work(tx)
            except Busy as busy:
                if last or not collided(busy.__cause__ or busy):
                    raise
            await asyncio.sleep(secrets.randbelow(1_000) / 1_000 * pause)  # not in step with the one that it collided with
            pause *= 2
        raise AssertionError("the last try returns or raises")

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
        async with self._opened(writing=True) as tx:
            if epoch is not None:
                await _guard(tx, epoch)
            yield tx

    @asynccontextmanager
    async def _opened(self, *, writing: bool) -> AsyncIterator[Tx]:
        """A transaction from its begin to its end."""
        tx, stack = await self._open(writing=writing)
        try:
            yield tx
        except BaseException as error:
            await self._whole(stack.__aexit__(type(error), error, error.__traceback__))
            raise
        await self._whole(stack.__aexit__(None, None, None))

    async def _open(self, *, writing: bool) -> tuple[Tx, AsyncExitStack]:
        """A begun transaction, and what ends it. Waits for SQLite's lock, ``busy_timeout_s`` at most."""
        pauses = patience.pauses(self._busy, asyncio.get_running_loop().time)
        while True:
            stack = AsyncExitStack()
            try:
                return await self._whole(self._enter(stack, writing=writing)), stack
            except BaseException as error:
                await self._whole(stack.__aexit__(type(error), error, error.__traceback__))
                locked = self.sqlite and isinstance(error, OperationalError) and patience.locked(error)
                pause = next(pauses, None) if locked else None
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _enter(self, stack: AsyncExitStack, *, writing: bool) -> Tx:
        conn = await stack.enter_async_context(self.engine.connect())
        if writing:
            conn = await conn.execution_options(zlh_write=True)
        await stack.enter_async_context(conn.begin())
        return (Tx if writing else Look)(conn, await self._now(conn), whole=self._whole)


def _cancellations() -> int:
    """Of this task, asked for and not yet taken back."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _parsed(url: str | URL) -> URL:
    if isinstance(url, URL):
        return url
    checked(url)
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # their texts may quote the password
        remedy = f"{FORM}; special characters of a password are percent-encoded"
        raise MisconfiguredSetting(SETTING, why="cannot be read as an URL", remedy=remedy) from None


_EPOCH = select(t.epochs.c.epoch).where(t.epochs.c.name == "reconcile").with_for_update(read=True)


async def _guard(tx: Tx, epoch: int) -> None:
    row = (await tx.execute(_EPOCH)).one_or_none()
    if row is None or row.epoch != epoch:
        raise Fenced("sweep", why=f"epoch {epoch} was superseded by {row.epoch if row else 'none'}")


async def ping(database: Database) -> int:
    """The database's clock, or Unreachable."""
    async with database.read() as tx:
        await tx.execute(text("SELECT 1"))
        return tx.now
