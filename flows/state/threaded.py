"""A whole SQLite transaction in one hop to a thread, for :meth:`flows.state.database.Database.apply`.

Through the asynchronous driver each statement travels to a thread and back several times; with a dozen and a half statements that costs
ten times what SQLite itself does. Here the transaction's function runs in the writer's thread from ``BEGIN IMMEDIATE`` to the commit.
It is the same ``async`` function as everywhere, but none of its statements ever has to wait for the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from flows.state import patience

if TYPE_CHECKING:
    from flows.state.database import Tx

T = TypeVar("T")


@dataclass
class Hooks:
    """What the asynchronous engine does too: settings of a connection, how a transaction begins, what the time is, how a ``Tx`` is made."""

    on_connect: Callable[[Any, Any], None]
    on_begin: Callable[[Any], None]
    now: Callable[[Any], int]
    tx: Callable[[Any, int], Tx]


class ThreadedWriter:
    """One thread with one connection. Nothing is opened before the first use."""

    def __init__(self, url: URL, busy_timeout_s: float, hooks: Hooks) -> None:
        self._url, self._busy_timeout_s, self._hooks = url, busy_timeout_s, hooks
        self._thread: ThreadPoolExecutor | None = None
        self._engine: Engine | None = None

    async def run(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Commits what ``work`` did, or nothing of it. It is carried to its end even when the caller is cancelled: then nobody is told."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "zlh-writer")
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work))

    async def close(self) -> None:
        """Waits for the transaction under way."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._dispose)
            thread.shutdown(wait=False)

    def _transact(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        left: list[Callable[[Tx], Awaitable[None]]] = []
        try:
            with ExitStack() as stack:
                tx = self._open(stack)
                left = tx.always
                result = drive(work(tx))
                for write in left:
                    drive(write(tx))
            return result
        except Exception:  # raised again: only what must be written however it ends is added
            if left:
                with ExitStack() as stack:
                    tx = self._open(stack)
                    for write in left:
                        drive(write(tx))
            raise

    def _open(self, stack: ExitStack) -> Tx:
        """A begun transaction, which ends with ``stack``. Waits for the lock, ``busy_timeout_s`` at most."""
        pauses = patience.pauses(self._busy_timeout_s, time.monotonic)
        while True:
            with ExitStack() as attempt:
                try:
                    conn = attempt.enter_context(self._connection())
                    attempt.enter_context(conn.begin())
                    tx = self._hooks.tx(conn, self._hooks.now(conn))
                except OperationalError as error:
                    pause = next(pauses, None) if patience.locked(error) else None
                    if pause is None:
                        raise
                else:
                    stack.enter_context(attempt.pop_all())
                    return tx
            time.sleep(pause)

    def _connection(self) -> Any:
        if self._engine is None:
            url = self._url.set(drivername="sqlite")
            self._engine = create_engine(url, connect_args={"timeout": 0}, execution_options={"zlh_write": True})
            event.listen(self._engine, "connect", self._hooks.on_connect)
            event.listen(self._engine, "begin", self._hooks.on_begin)
        return self._engine.connect()

    def _dispose(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None


def drive(work: Awaitable[T]) -> T:
    """Runs a coroutine that never waits for a loop, and returns its result."""
    assert isinstance(work, Coroutine)
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # StopIteration is not generic
    work.close()
    raise RuntimeError("a transaction given as a function may await its own statements alone")
