"""A call that is cancelled only when it has ended.

SQLite's driver runs each call in a thread. SQLAlchemy takes a cancellation within one for the end of the connection and drops it, while the
thread still begins its transaction: the file's write lock then stays with a connection that nobody holds, and every process waits for it. On
SQLite each call is short (:mod:`flows.state.patience` waits outside of it), so it is let end first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def unbroken(call: Coroutine[Any, Any, T]) -> T:
    """Its result. A cancellation that strikes meanwhile is raised after its end, in place of result or error."""
    task = asyncio.ensure_future(call)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # looked at: without it asyncio would report a defect
    raise cancelled
