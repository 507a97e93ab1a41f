"""Asking thousands of agents at once, in bounded time and with bounded resources. Used by :mod:`agents` alone.

Workers take servers from one queue. Who gives no answer for much longer than the others needed frees its place for the next, and goes on
waiting beside it: a host full of silent containers must not hold up the living. Where all are slow, because we or the network are, nobody
frees a place: more at once would make it worse. The silent are asked once more, when everybody has been asked once.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable, Sequence

from flows.domain.agent import AgentStatus
from flows.domain.known import Known, Unknown
from flows.domain.server import Server

#: Patience is this many times the usual answer's time, and this many seconds at least; usual is known after so many answers.
TIMES, PATIENCE_S, USUAL_AFTER = 6.0, 0.4, 16
#: Weight of the newest answer in the usual time.
WEIGHT = 0.05
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
        self._answers, self._usual_s = 0, 0.0
        self._silent: set[str] = set()  # had the whole time-out at least once
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._all = asyncio.Semaphore(MOST if soft == resource.RLIM_INFINITY else max(16, min(MOST, soft - SPARE)))

    async def run(self, servers: Sequence[Server], within_s: float) -> dict[str, Result]:
        """A result for every server, by id, after ``within_s`` seconds at the latest."""
        self._ends = time.monotonic() + within_s
        stride = max(1, len(servers) // self._width)  # neighbours in the list share a host; those asked at once should not
        silent = await self._round([s for first in range(stride) for s in servers[first::stride]], last=False)
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
                done, _ = await asyncio.wait({task}, timeout=self._patience)
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

    @property
    def _patience(self) -> float:
        """Seconds that a probe may keep its place."""
        if self._answers < USUAL_AFTER:
            return self._timeout_s
        return min(self._timeout_s, max(PATIENCE_S, TIMES * self._usual_s))

    def _answered(self, took_s: float) -> None:
        self._answers += 1
        self._usual_s += (took_s - self._usual_s) * (WEIGHT if self._answers > USUAL_AFTER else 1 / self._answers)

    async def _one(self, server: Server, silent: list[Server], last: bool) -> None:
        began = time.monotonic()
        try:
            timeout_s = min(self._timeout_s, max(0.05, self._ends - began))
            result = await self._probe(server, timeout_s)
        finally:
            self._all.release()
        if result is None:
            silent.append(server)
            if timeout_s >= self._timeout_s:
                self._silent.add(server.id)
            if server.id in self._silent:
                result = Unknown("no answer, twice" if last else "no answer")
            else:  # cut short, its silence says nothing
                result = Unknown(f"{NOT_ASKED}no time was left for a whole try in this sweep")
        else:
            self._answered(time.monotonic() - began)
        self._results[server.id] = result
