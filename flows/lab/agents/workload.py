"""The workload of one container and the jobs that move it. The record in the world holds the state, so that it
outlives the agent's listener, as a game server in a unit of its own outlives a killed agent."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from flows.lab.config import AgentsConfig
from flows.lab.serving import settle
from flows.lab.world import LabAgent

#: Jobs that an agent remembers.
JOBS_KEPT = 200
#: Crashes in a row after which only a person or the controller starts it again.
CRASH_LIMIT = 3
_numbers = itertools.count(1)


@dataclass
class Job:
    """``state`` is running, succeeded, failed or interrupted. Times in Unix seconds."""

    id: str
    kind: str
    by: str
    created_at: float
    state: str = "running"
    phase: str = ""
    finished_at: float | None = None

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


class InProgress(Exception):
    """Another job is under way."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job


class Workload:
    """Starts, stops and crashes one workload. Every start takes the same path."""

    def __init__(self, agent: LabAgent, timings: AgentsConfig) -> None:
        self.agent, self._timings = agent, timings
        self.jobs: deque[Job] = deque(maxlen=JOBS_KEPT)
        self.running_since: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._live: Job | None = None
        self._crashes = 0

    @property
    def live(self) -> Job | None:
        """The job under way."""
        return self._live

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether the workload serves, and why not."""
        agent = self.agent
        if not agent.prepared:
            return False, "provisioning is not complete"
        if agent.kind == "dev" and not agent.code_server:
            return True, ""
        if agent.workload != "running":
            return False, f"the workload is {agent.workload}"
        if time.monotonic() < agent.ready_at:
            return False, "the workload does not answer yet"
        return True, ""

    @property
    def state(self) -> str:
        """As ``/status`` says it: a developer container without code-server runs as soon as it is prepared."""
        if self.agent.kind == "dev" and not self.agent.code_server:
            return "running" if self.agent.prepared else "stopped"
        return self.agent.workload

    def start(self, by: str = "api") -> tuple[Job, bool]:
        """``(job, whether it has an effect)``. Raises InProgress where a different job is under way."""
        self.agent.autostart = True
        if by == "api":
            self._crashes = 0
        return self._order("start", by, lambda: self.agent.workload in ("running", "starting"), self._do_start)

    def stop(self, by: str = "api") -> tuple[Job, bool]:
        job, effect = self._order("stop", by, lambda: self.agent.workload in ("stopped", "stopping"), self._do_stop)
        self.agent.autostart = False
        return job, effect

    def restart(self, by: str = "api") -> tuple[Job, bool]:
        async def both(job: Job) -> None:
            await self._do_stop(job)
            await self._do_start(job)

        self.agent.autostart = True
        self._crashes = 0
        return self._order("restart", by, lambda: False, both)

    async def crash(self, reason: str = "out_of_memory") -> None:
        """The process dies. It is started again after the back-off, until it has died ``CRASH_LIMIT`` times."""
        await self._interrupt()
        self._crashes += 1
        self.running_since = None
        self.agent.last_crash = {"class": reason, "at": time.time(), "count": self._crashes}
        if self._crashes >= CRASH_LIMIT:
            self.agent.workload = "error"
            return
        self.agent.workload = "crashed"
        self._task = asyncio.create_task(self._recover())

    async def power_off(self) -> None:
        """The container is gone, and every process with it."""
        await self._interrupt()
        self.agent.workload, self.running_since = "stopped", None

    async def power_on(self) -> None:
        """The container came up: what ran before runs again."""
        if self.agent.autostart and self.agent.prepared and self.agent.workload == "stopped" and self._live is None:
            self.start(by="autostart")

    async def close(self) -> None:
        await self._interrupt()

    def _order(self, kind: str, by: str, satisfied: Callable[[], bool], run: Callable[[Job], Coroutine[Any, Any, None]]) -> tuple[Job, bool]:
        if self._live is not None:
            if self._live.kind == kind:
                return self._live, False
            raise InProgress(self._live)
        job = Job(f"job-{next(_numbers)}", kind, by, time.time())
        self.jobs.append(job)
        if satisfied():
            job.state, job.finished_at = "succeeded", job.created_at
            return job, False
        if self._task is not None:  # a crash recovery that waits: the order replaces it
            self._task.cancel()
        self._live = job
        self._task = asyncio.create_task(self._carry(job, run))
        return job, True

    async def _carry(self, job: Job, run: Callable[[Job], Coroutine[Any, Any, None]]) -> None:
        try:
            await run(job)
            job.state = "succeeded"
        except asyncio.CancelledError:
            job.state = "interrupted"
            raise
        finally:
            job.finished_at = time.time()
            if self._live is job:
                self._live = None

    async def _do_start(self, job: Job) -> None:
        job.phase, self.agent.workload = "starting", "starting"
        await asyncio.sleep(self._timings.start_s)
        self.agent.workload, self.agent.ready_at, self.running_since = "running", time.monotonic(), time.monotonic()
        job.phase = "ready"

    async def _do_stop(self, job: Job) -> None:
        job.phase, self.agent.workload = "stopping", "stopping"
        await asyncio.sleep(self._timings.stop_s)
        self.agent.workload, self.running_since = "stopped", None
        job.phase = "stopped"

    async def _recover(self) -> None:
        await asyncio.sleep(self._timings.crash_restart_s)
        self.agent.restarts += 1
        self._task = None
        self.start(by="crash_recovery")

    async def _interrupt(self) -> None:
        task, self._task = self._task, None
        await settle(task)
        self._live = None
