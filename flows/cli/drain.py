"""Draining: a worker that is stopped kills its flows at once, so the pool is paused and what runs may end first."""

from __future__ import annotations

import asyncio
import time

from flows.clients.engine import PrefectEngine
from flows.settings import EngineSettings


async def drain(settings: EngineSettings, limit_s: float) -> int:
    """Pauses the pool, waits, and returns how many runs are still under way. ``resume`` is what a start does."""
    engine = PrefectEngine(settings)
    try:
        await engine.pause(True)
        deadline = time.monotonic() + limit_s
        while True:
            left = len(await engine.active())
            if left == 0 or time.monotonic() >= deadline:
                return left
            await asyncio.sleep(0.5)
    finally:
        await engine.close()


async def resume(settings: EngineSettings) -> None:
    """Runs are handed out again."""
    engine = PrefectEngine(settings)
    try:
        await engine.pause(False)
    finally:
        await engine.close()
