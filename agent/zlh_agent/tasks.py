"""The supervisor's tasks, by name: one of each at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class Tasks:
    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Takes the place of the one that has the name."""
        self.cancel(name)
        task = self._tasks[name] = asyncio.create_task(work, name=name)
        task.add_done_callback(_say)

    def cancel(self, name: str) -> None:
        """Harmless where there is none. Who cancels its own task goes on, and only gives its name away."""
        task = self._tasks.pop(name, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def close(self) -> None:
        """Cancels all and waits for their ends."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _say(task: asyncio.Task[None]) -> None:
    """Nobody waits for such a task: what it did not expect would be told by no one."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s ended unexpectedly", task.get_name(), exc_info=error)
