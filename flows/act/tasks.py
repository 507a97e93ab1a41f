"""Ending a task of one's own without losing one's own cancellation. Used wherever ``act`` runs something beside its work."""

from __future__ import annotations

import asyncio


async def ended(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits for its end, however it ends: its outcome is the caller's to look at. A cancellation of the *caller*
    meanwhile is raised and not taken for the task's: a time limit or a fence that strikes here would be lost, and never strike again."""
    task.cancel()
    if not task.done():
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # looked at, so that the loop does not call it forgotten
