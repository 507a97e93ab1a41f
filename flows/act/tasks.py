"""Tasks and cancellation: ending one's own task without losing one's own cancellation, and seeing a write through that is on its way.
Used wherever ``act`` runs something beside its work, or sends what cannot be taken back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from flows.settings import Settings

T = TypeVar("T")


async def ended(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits for its end, however it ends: its outcome is the caller's to look at. A cancellation of the *caller*
    meanwhile is raised and not taken for the task's: a time limit or a fence that strikes here would be lost, and never strike again."""
    task.cancel()
    if not task.done():
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # looked at, so that the loop does not call it forgotten


def longest_call_s(settings: Settings) -> float:
    """Seconds after which no call of ours to any peer is still on its way."""
    calls = (settings.timing.call_s, settings.proxmox.timeout_s, settings.proxy.timeout_s, settings.dns.timeout_s, settings.agent.timeout_s)
    return max(calls) + settings.timing.margin_s


async def seen_through(call: Awaitable[T], limit_s: float) -> T:
    """A write that may have been sent is never abandoned: a cancellation of the caller first waits for the call's own end, ``limit_s`` at
    most. Otherwise whoever looks next finds nothing, and the effect arrives after the look."""
    work, loop = asyncio.ensure_future(call), asyncio.get_running_loop()
    cancelled: asyncio.CancelledError | None = None
    ends: float | None = None
    while not work.done():
        left = None if ends is None else max(0.0, ends - loop.time())
        if left == 0.0:
            work.cancel()
        try:
            await asyncio.wait({work}, timeout=left or None)
        except asyncio.CancelledError as error:
            cancelled = error
            ends = ends if ends is not None else loop.time() + limit_s
    if cancelled is not None:
        if not work.cancelled():
            work.exception()  # looked at, so that the loop does not call it forgotten
        raise cancelled
    return work.result()
