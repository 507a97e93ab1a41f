"""Two hosts that run the product's own code: sweeps, runs of operations, submitters, dispatchers. The engine between them is the world's.

Each sweep and each run is a process of its own, as under the engine; a host's dispatcher lives as long as the host. A host that dies takes
its processes with it and comes back after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from flows import bootstrap
from flows.act import executor
from flows.act import sweep as sweeping
from flows.act.deps import Deps, Identity
from flows.domain.event import Event, Route
from flows.domain.ports import Artifact
from flows.domain.server import Server
from flows.domain.sources import Registration
from flows.errors import AutomationError, Unreachable
from flows.report.dispatch import Dispatcher, Submitter
from flows.settings import Settings
from flows.simulate.database import Store
from flows.simulate.keyed import draw
from flows.simulate.loop import BARE, Process, VirtualLoop
from flows.simulate.sources.agents import Agents
from flows.simulate.sources.dns import Dns
from flows.simulate.sources.engine import Engine, EngineServer, Run
from flows.simulate.sources.gate import Gate, Redis
from flows.simulate.sources.notifier import Notifier
from flows.simulate.sources.proxmox import Proxmox
from flows.simulate.sources.proxy import Proxy
from flows.simulate.sources.runner import Runner
from flows.simulate.world import World
from flows.state import rehydrate

HOSTS = ("c1", "c2")
#: Share of the ticks that both hosts take at once.
TWICE = 0.12
#: Seconds between two looks of a dispatcher that nobody woke, while something waits.
LOOK_S = 15.0
_SUBMISSIONS = "SELECT 1 FROM operations WHERE attempt_state IN ('unclaimed', 'submitting') AND live_server IS NOT NULL"
#: Tables whose commits may mean work for a dispatcher.
_NEWS = frozenset({"outbox", "attempts"})
Swept = Callable[[Process, sweeping.SweepResult | None], None]


@dataclass
class Controllers:
    loop: VirtualLoop
    seed: int
    store: Store
    world: World
    settings: Settings
    #: Server id by its name, and by its VMID, as of the last commit: for receivers that only know a name.
    server_of: Callable[[str], str]
    swept: Swept = lambda process, result: None
    said: Callable[[Process, str], None] = lambda process, line: None
    doubted: Callable[[str], None] = lambda kind: None
    processes: list[Process] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    standing: dict[str, float] = field(default_factory=dict)  # hosts that stand still, until when
    late: int = 0  # causes for which the engine's schedule is behind
    due: list[float] = field(default_factory=list)  # its ticks that nobody got yet
    redis: Redis = field(default_factory=Redis)
    numbers: dict[str, int] = field(default_factory=dict)
    twins: int = 0  # runs that are begun twice from now on
    armed: list[tuple[str, Callable[[Process], None], str | int]] = field(default_factory=list)
    stopped: bool = False

    def __post_init__(self) -> None:
        world = self.world
        self.engine = EngineServer(world, self._begin, self.alive)
        self.proxmox, self.agents, self.dns, self.runner = Proxmox(world), Agents(world), Dns(world), Runner(world)
        self.proxy = Proxy(world, self.server_of, self._listing)
        self.route: Callable[[Event, int], Route] = bootstrap.router(self.settings)
        self.dirty: dict[str, bool] = {}
        self.wakes: dict[str, asyncio.Future[None]] = {}

    # Processes

    def alive(self) -> list[str]:
        return [host for host in HOSTS if host not in self.down and self.standing.get(host, 0.0) <= self.loop.time()]

    def process(self, kind: str, host: str) -> Process:
        number = self.numbers[kind] = self.numbers.get(kind, 0) + 1
        process = Process(f"{kind}{number}@{host}", host, kind, self.loop.time())
        process.holder = f"{host}:{number}:{kind}"
        process.on_death.append(lambda: self.store.orphaned(process))
        self.processes.append(process)
        entry = next((entry for entry in self.armed if entry[0] in (kind, host)), None)
        if entry is not None:  # one fault strikes one process
            self.armed.remove(entry)
            process.arm(entry[1], entry[2])
        if self.standing.get(host, 0.0) > self.loop.time():
            self.stand(process, self.standing[host] - self.loop.time())
        return process

    def spawn(self, process: Process, work: Coroutine[Any, Any, None]) -> None:
        def over(task: asyncio.Task[None]) -> None:
            if process in self.processes:
                self.processes.remove(process)
            error = None if task.cancelled() else task.exception()
            if error is not None:  # nobody awaits it: what is no AutomationError is a defect, and ends the simulation
                self.loop.failure = self.loop.failure or error

        task = self.loop.spawn(process, work)
        task.add_done_callback(over, context=self.loop.outside)

    def kill(self, process: Process) -> None:
        self.doubted(process.kind)
        self.loop.kill(process)
        if process.kind == "dispatch":  # what it had is the other one's from now on
            for wake in self.wakes.values():
                _wake(wake)
        if process in self.processes:
            self.processes.remove(process)

    def stand(self, process: Process, seconds: float) -> None:
        self.doubted(process.kind)
        self.loop.after(seconds, self.doubted, process.kind)
        self.loop.stand(process, seconds)
        self.store.stands(process)

    def kill_host(self, host: str, seconds: float) -> None:
        if host in self.down:
            return
        self.down.add(host)
        for process in [p for p in self.processes if p.host == host]:
            self.kill(process)
        self.loop.after(seconds, self._back, host)

    def stand_host(self, host: str, seconds: float) -> None:
        """SIGSTOP of all its processes, its worker included, and SIGCONT after so many seconds."""
        self.standing[host] = max(self.standing.get(host, 0.0), self.loop.time() + seconds)
        for process in [p for p in self.processes if p.host == host]:
            self.stand(process, seconds)
        self.loop.after(seconds, self.engine.look_soon)

    def _back(self, host: str) -> None:
        self.down.discard(host)
        self.dispatch(host)
        self.engine.look_soon()

    def deps(self, process: Process) -> Deps:
        async def boundary(name: str) -> None:
            if process.at(name):
                await BARE

        return Deps(
            settings=self.settings, database=self.store.database(), proxmox=self.proxmox, agents=self.agents, proxy=self.proxy, dns=self.dns,
            engine=Engine(self.world, self.engine), runner=self.runner, identity=_identity, artifact=_artifact, route=self.route,
            public_key=lambda: "ssh-ed25519 AAAA", holder=process.holder, boundary=boundary, abandon=lambda: self.kill(process),
        )  # fmt: skip

    # Sweeps

    def begin(self) -> None:
        for host in HOSTS:
            self.dispatch(host)
        self.loop.after(1.0, self._tick, 0)

    def _tick(self, number: int) -> None:
        """The engine's schedule: one of the hosts takes the tick, now and then both."""
        if self.stopped:
            return
        self.loop.after(self.settings.timing.sweep_s, self._tick, number + 1)
        if self.late:
            self.due.append(self.loop.time())
            return
        alive = self.alive()
        if not alive or self.world.wire.trouble("engine").down:
            return
        first = alive[int(draw(self.seed, "tick", number) * len(alive))]
        self.sweep(first)
        if len(alive) > 1 and draw(self.seed, "twice", number) < TWICE:
            self.loop.after(8 * draw(self.seed, "late", number), self.sweep, next(h for h in alive if h != first))

    def catch_up(self) -> None:
        """The ticks that were missed come all at once. Those too old end as superseded, as in ``flows.reconcile``."""
        due, self.due = self.due, []
        alive = self.alive()
        for number, at in enumerate(due):
            if alive and not sweeping.too_late(self.loop.time() - at, self.settings.timing):
                self.sweep(alive[number % len(alive)])

    def sweep(self, host: str) -> None:
        if host not in self.down:
            process = self.process("sweep", host)
            self.spawn(process, self._sweep(process))

    async def _sweep(self, process: Process) -> None:
        try:
            result = await sweeping.sweep(self.deps(process), Gate(self.world, self.redis), lambda line: self.said(process, line))
        except AutomationError as error:
            self.said(process, f"failed: {error}")
            self.swept(process, None)
            return
        self.swept(process, result)

    # Runs

    def _begin(self, run: Run, host: str) -> Process | None:
        if host in self.down:
            return None
        first = self._run(run, host)
        if self.twins:
            self.twins -= 1
            others = [h for h in self.alive() if h != host]
            self._run(run, others[0] if others else host)
        return first

    def _run(self, run: Run, host: str) -> Process:
        process = self.process("run", host)
        process.told["run"] = (run.operation_id, run.attempt)
        process.on_death.append(lambda: self.engine.died(run, alone=host not in self.down))
        self.spawn(process, self._carry(process, run))
        return process

    async def _carry(self, process: Process, run: Run) -> None:
        state = "completed"
        try:
            await executor.run(self.deps(process), run.operation_id, run.attempt, run.generation, lambda line: self.said(process, line))
        except AutomationError as error:
            self.said(process, f"run failed: {error}")
            state = "failed"
        self.engine.end(run, state)

    # Submitters and dispatchers

    def dispatch(self, host: str) -> None:
        process = self.process("dispatch", host)
        self.dirty[host] = False
        self.spawn(process, self._dispatch(process, host))

    async def _dispatch(self, process: Process, host: str) -> None:
        """What ``zlh dispatch`` does in two loops, woken by commits instead of looking every second."""
        database = self.store.database()
        submit = Submitter(database, Engine(self.world, self.engine), self.settings, process.holder)
        post = Dispatcher(database, Notifier(self.world), self.settings, process.holder, clock=self.loop.time)
        beat = 1.0 + draw(self.seed, "dispatch", host)
        looked = -LOOK_S
        while True:
            await self._next_beat(host, beat, looked)
            self.dirty[host], looked = False, self.loop.time()
            for work in (submit.submit, post.drain):
                await self._until_idle(process, work)

    async def _next_beat(self, host: str, beat: float, looked: float) -> None:
        """Until the first beat from now on at which a commit of somebody else's, or what waits for long, asks for a look."""
        loop, begun = self.loop, self.loop.time()
        while not self.dirty[host]:
            if self._waiting() and loop.time() - looked >= LOOK_S:
                break
            wake = self.wakes[host] = loop.create_future()
            if self._waits():
                loop.after(max(looked + LOOK_S - loop.time(), LOOK_S / 2), _wake, wake)
            await wake
        beats = int((loop.time() - begun) / beat) + 1
        await loop.nap(begun + beats * beat - loop.time())

    async def _until_idle(self, process: Process, work: Callable[[], Awaitable[int]]) -> None:
        try:
            while await work():
                await self.loop.nap(0.2)
        except AutomationError as error:
            self.said(process, f"will try again: {error}")

    def _waiting(self) -> bool:
        """Whether anything is due to be sent or submitted: a look beside the product, so that a month need not open a transaction each second."""
        due = "SELECT 1 FROM outbox WHERE state = 'waiting' AND not_before <= ?"
        found = self.store.reader.execute(f"SELECT EXISTS ({due}) OR EXISTS ({_SUBMISSIONS})", (self.store.now(),)).fetchone()
        return bool(found[0])

    def _waits(self) -> bool:
        """Whether anything is, or will be, due."""
        held = "SELECT 1 FROM outbox WHERE state = 'waiting'"
        return bool(self.store.reader.execute(f"SELECT EXISTS ({held}) OR EXISTS ({_SUBMISSIONS})").fetchone()[0])

    def woken(self, process: Process | None, tables: frozenset[str]) -> None:
        """A dispatcher goes on by itself until nothing is left: its own commits are no news to it, nor to the other one."""
        if (process is not None and process.kind == "dispatch") or not tables & _NEWS:
            return
        for host in self.dirty:
            self.dirty[host] = True
            _wake(self.wakes.get(host))

    # What the bridge asks our listener

    async def _listing(self) -> Mapping[str, tuple[Registration, int]]:
        database = self.store.database()
        if not self.alive():
            raise Unreachable("control listener", why="no host is up")
        async with database.read() as tx:
            found = await rehydrate.backends(tx)
        return {b.name: (Registration(b.name, b.address, b.port), b.lease_token) for b in found.backends}


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _identity(server: Server) -> Identity:
    return Identity(SecretStr("token"), None, None, None)


async def _artifact(kind: str, name: str, version: str) -> Artifact:
    return Artifact(kind, name, version or "1", "http://127.0.0.1/a", "00", 1, "promoted")
