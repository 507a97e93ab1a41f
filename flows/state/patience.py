"""Waiting for SQLite's write lock without letting SQLite wait.

While SQLite's own busy handler sleeps, its thread holds the connection's mutex. Should the event loop's thread then collect a left-over
cursor of that connection (any allocation may), it stands still until the handler gives up, and with it everything, the holder of the lock
included if it lives in this process. So connections are opened with no time-out at all, and whoever begins a transaction tries again
after these pauses. Only the beginning is tried again: nothing has been done by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy.exc import OperationalError

_FIRST_S, _LONGEST_S = 0.001, 0.020


def locked(error: OperationalError) -> bool:
    """Whether SQLite refused because somebody else was at it (SQLITE_BUSY)."""
    return "locked" in str(error.orig)


def pauses(limit_s: float, clock: Callable[[], float]) -> Iterator[float]:
    """Seconds to wait before each new try, until ``limit_s`` have passed by ``clock``. Not random: a simulation must repeat."""
    end, pause = clock() + limit_s, _FIRST_S
    while clock() < end:
        yield pause
        pause = min(2 * pause, _LONGEST_S)
