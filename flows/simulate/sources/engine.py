"""The engine, and its port: runs by key, queues with their limits, workers on the hosts. As measured of Prefect: a run whose worker died with it
stays *Running* and keeps its slot until somebody gives it up, or for five minutes; a run that dies alone is crashed at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flows.clients.engine_setup import QUEUE_LIMITS
from flows.domain.operation import Queue
from flows.domain.sources import EngineRun
from flows.simulate.loop import Process
from flows.simulate.world import World

LIMIT_S = 10.0
#: Seconds after which a dead run's slot is freed.
FORGOTTEN_S = 312.0
Start = Callable[["Run", str], Process | None]


@dataclass
class Run:
    id: str
    key: str
    queue: str
    operation_id: str
    attempt: int
    generation: int
    state: str = "scheduled"
    process: Process | None = None
    host: str = ""
    since: float = 0.0

    @property
    def finished(self) -> bool:
        return self.state in ("completed", "crashed", "cancelled", "failed")


class EngineServer:
    """``start`` begins a run's process on a host; ``hosts`` are those whose worker lives."""

    def __init__(self, world: World, start: Start, hosts: Callable[[], Sequence[str]]) -> None:
        self.w, self._start, self._hosts = world, start, hosts
        self.runs: dict[str, Run] = {}
        self._waiting: dict[str, list[Run]] = {}
        self._slots: dict[str, list[Run]] = {}

    def submit(self, key: str, parameters: Mapping[str, object], queue: str) -> str:
        found = self.runs.get(key)
        if found is None:
            operation, attempt, generation = (parameters[k] for k in ("operation_id", "attempt", "generation"))
            assert isinstance(operation, str) and isinstance(attempt, int) and isinstance(generation, int)
            found = self.runs[key] = Run(f"run-{len(self.runs) + 1}", key, queue, operation, attempt, generation)
            self._waiting.setdefault(queue, []).append(found)
            self.look_soon()
        return found.id

    def look_soon(self) -> None:
        self.w.loop.after(2.0, self.look)

    def look(self) -> None:
        """What a worker does every few seconds."""
        hosts = self._hosts()
        if self.w.wire.trouble("engine").down:
            return
        for queue, waiting in self._waiting.items():
            limit = QUEUE_LIMITS[Queue(queue)]
            slots = self._slots.setdefault(queue, [])
            while waiting and hosts and (limit is None or len(slots) < limit):
                run = waiting.pop(0)
                if run.finished:
                    continue
                host = hosts[int(self.w.wait(0, len(hosts) - 0.001, "host", run.key))]
                run.state, run.host, run.since = "running", host, self.w.loop.time()
                slots.append(run)
                self.w.loop.after(self.w.wait(1, 3, "spawn", run.key), self._begin, run)

    def _begin(self, run: Run) -> None:
        if run.finished:
            return
        run.process = self._start(run, run.host)
        if run.process is None:  # its worker died before the run began: pending for good
            self.w.loop.after(FORGOTTEN_S, self.end, run, "crashed")

    def end(self, run: Run, state: str) -> None:
        if run.finished:
            return
        run.state = state
        slots = self._slots.get(run.queue, [])
        if run in slots:
            slots.remove(run)
        self.look_soon()

    def died(self, run: Run, *, alone: bool) -> None:
        """Its process is dead; ``alone``: its worker lives and noticed."""
        self.w.loop.after(0.5 if alone else FORGOTTEN_S, self.end, run, "crashed")


class Engine:
    def __init__(self, world: World, server: EngineServer) -> None:
        self.w, self._server = world, server

    async def submit(self, deployment: str, key: str, parameters: Mapping[str, object], queue: str) -> str:
        """Idempotent by its key, so a lost answer is Unreachable."""

        def effect() -> str:
            return self._server.submit(key, parameters, queue)

        return await self.w.wire.call("engine", "submit", key, effect, write=True, limit_s=LIMIT_S)

    async def runs(self, keys: Sequence[str]) -> Mapping[str, EngineRun]:
        def answer() -> Mapping[str, EngineRun]:
            known = {} if self.w.wire.trouble("engine").lying else self._server.runs
            return {k: EngineRun(r.id, k, r.state, r.finished) for k in sorted(set(keys)) if (r := known.get(k)) is not None}

        return await self.w.wire.call("engine", "runs", "", answer, write=False, limit_s=LIMIT_S)

    async def cancel(self, run_id: str) -> None:
        return None

    async def give_up(self, run_id: str, reason: str) -> None:
        def effect() -> None:
            for run in self._server.runs.values():
                if run.id == run_id:
                    self._server.end(run, "crashed")

        await self.w.wire.call("engine", "give_up", run_id, effect, write=True, limit_s=LIMIT_S)
