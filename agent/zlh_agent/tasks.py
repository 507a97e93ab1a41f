"""The supervisor's tasks, by name: one of each at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Takes the place of the one that has the name."""
        self.cancel(name)
        self._tasks[name] = asyncio.create_task(work)

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
