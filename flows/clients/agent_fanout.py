"""Asking thousands of agents at once, in bounded time and with bounded resources. Used by :mod:`agents` alone.

Workers take servers from one queue. Who gives no answer for PATIENCE_S frees its place for the next, and goes on waiting beside it: a host
full of silent containers must not hold up the living. The silent are asked once more, when everybody has been asked once.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable, Sequence

from flows.domain.agent import AgentStatus
from flows.domain.known import Known, Unknown
from flows.domain.server import Server

PATIENCE_S = 0.4
#: Most probes under way at once, the waiting ones included, and file descriptors that the rest of the process may need.
MOST, SPARE = 4096, 256
#: Begins the reason of Unknown where there was no time to ask: that is no sign of anything.
NOT_ASKED = "not asked: "

Result = Known[AgentStatus] | Unknown
#: ``(server, timeout in seconds)`` → None where there was no answer.
Probe = Callable[[Server, float], Awaitable[Result | None]]


class FanOut:
    """``width`` probes at once, the patient ones apart; each with ``timeout_s``."""

    def __init__(self, probe: Probe, timeout_s: float, width: int) -> None:
        self._probe, self._timeout_s, self._width = probe, timeout_s, width
        self._results: dict[str, Result] = {}
        self._ends = 0.0
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._all = asyncio.Semaphore(MOST if soft == resource.RLIM_INFINITY else max(16, min(MOST, soft - SPARE)))

    async def run(self, servers: Sequence[Server], within_s: float) -> dict[str, Result]:
        """A result for every server, by id, after ``within_s`` seconds at the latest."""
        self._ends = time.monotonic() + within_s
        silent = await self._round(servers, last=False)
        await self._round(silent, last=True)
        return self._results

    async def _round(self, servers: Sequence[Server], *, last: bool) -> list[Server]:
        """Returns who gave no answer and may be asked again."""
        silent: list[Server] = []
        todo = iter(servers)
        under_way: set[asyncio.Task[None]] = set()

        async def worker() -> None:
            for server in todo:
                await self._all.acquire()
                if time.monotonic() >= self._ends:
                    self._all.release()
                    self._results.setdefault(server.id, Unknown(f"{NOT_ASKED}no time was left in this sweep"))
                    continue
                task = asyncio.create_task(self._one(server, silent, last))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
                if done:
                    task.result()  # a bug must not look like silence

        workers = [asyncio.create_task(worker()) for _ in range(min(self._width, len(servers)))]
        try:
            await asyncio.gather(*workers)
            await asyncio.gather(*under_way)
        finally:
            for task in (*workers, *under_way):
                task.cancel()
        return silent

    async def _one(self, server: Server, silent: list[Server], last: bool) -> None:
        try:
            timeout_s = min(self._timeout_s, max(0.05, self._ends - time.monotonic()))
            result = await self._probe(server, timeout_s)
        finally:
            self._all.release()
        if result is None:
            silent.append(server)
            result = Unknown("no answer, twice" if last else "no answer")
        self._results[server.id] = result
