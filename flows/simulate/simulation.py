"""One simulation from its seed to its report: world, store, controllers, plan and invariants put together."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from flows.act.sweep import SweepResult
from flows.simulate import fleet, seams
from flows.simulate.autonomy import Autonomy
from flows.simulate.controllers import Controllers
from flows.simulate.database import EPOCH_MS, Store
from flows.simulate.faults import Faults
from flows.simulate.invariants.base import Scene, Violation
from flows.simulate.invariants.registry import INVARIANTS
from flows.simulate.ledger import Ledger
from flows.simulate.loop import Process, VirtualLoop
from flows.simulate.people import People
from flows.simulate.plan import Fault, planned
from flows.simulate.wire import Wire
from flows.simulate.world import Effect, World
from flows.state import migrate

#: Where database files live: memory, since nothing of them is kept.
_MEMORY = Path("/dev/shm")  # noqa: S108 - tmpfs is the point
#: What the invariants ask for at each commit: without these a month's rows would be looked through each time.
_INDEXES = (
    "CREATE INDEX simulated_open ON episodes (closed_at) WHERE closed_at IS NULL",
    "CREATE INDEX simulated_live ON operations (live_server) WHERE live_server IS NOT NULL",
    "CREATE INDEX simulated_posts ON outbox (created_at)",
)


@dataclass(frozen=True)
class Order:
    """What is simulated. ``hours`` may be a fraction."""

    seed: int = 1
    servers: int = 12
    hours: float = 6.0
    profile: str = "default"


@dataclass
class Report:
    seed: int
    servers: int
    hours: float
    trace: str = ""
    cpu_s: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)


@contextmanager
def directory() -> Iterator[Path]:
    """A directory in memory with an empty database of the present schema, ``template.db``. Made once for many seeds."""
    base = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="zlh-simulate-", dir=base))
    try:
        make_template(path)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_template(path: Path) -> None:
    migrate.upgrade_sync(f"sqlite+aiosqlite:///{path}/template.db")
    with contextlib.closing(sqlite3.connect(path / "template.db")) as made:  # the migration wrote the machine's time
        for index in _INDEXES:
            made.execute(index)
        made.execute("UPDATE control SET changed_at = ?, value = CASE name WHEN 'generation' THEN 1 ELSE value END", (EPOCH_MS,))
        made.commit()


class Simulation:
    def __init__(
        self, order: Order, home: Path, faults: Sequence[Fault] | None = None, changed: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """``faults`` None: those of the seed. ``changed``: settings other than the fleet's, by group."""
        self.order = order
        self.plan = list(planned(order.seed, order.servers, order.hours, order.profile) if faults is None else faults)
        self.loop = VirtualLoop()
        self._path = home / f"seed-{order.seed}-{os.getpid()}.db"
        shutil.copy(home / "template.db", self._path)
        self.wire = Wire(self.loop, order.seed)
        self.world = World(self.loop, order.seed, self.wire)
        self.world.heard = self._heard
        self.store = Store(self.loop, str(self._path), order.seed)
        self.store.told = self._told
        self.store.cut = lambda host: bool(self.wire.cuts.get((host, "database")))
        self.settings = fleet.settings(changed)
        self.controllers = Controllers(self.loop, order.seed, self.store, self.world, self.settings, self.server_of)
        self.controllers.swept = self._swept
        self.people = People(self.controllers)
        self.faults = Faults(self.controllers, self.people)
        self.faults.told = lambda fault, what: self.note("fault", fault, what)
        self.trace = blake2b(digest_size=16)
        self.counts: Counter[str] = Counter()
        self._names: dict[str, str] = {}
        self.violations: list[Violation] = []
        self.stop_at: str | None = None  # the one invariant that ends the run; None: whichever
        self.ledger = Ledger(self.store.reader, self.loop.time, self.store.now)
        self.scene = Scene(self.world, self.ledger, self.controllers, self.faults, self.settings, self._broken)
        self.invariants = [made(self.scene) for made in INVARIANTS.values()]
        self._autonomy = Autonomy(self.scene)
        self.wire.doubted = self.store.doubted = self.controllers.doubted = self._doubted
        self.store.before = self._before
        self.log: list[str] | None = None

    def server_of(self, name: str) -> str:
        return self._names.get(name, "")

    def run(self) -> Report:
        """Raises what the invariants raise."""
        began = time.process_time()
        with seams.replaced(self.loop, self.order.seed, EPOCH_MS), self._connected():
            self.loop.run_until_complete(self._whole())
        return Report(
            self.order.seed,
            self.order.servers,
            self.order.hours,
            self.trace.hexdigest(),
            time.process_time() - began,
            dict(sorted(self.counts.items())),
        )

    @contextmanager
    def _connected(self) -> Iterator[None]:
        self.loop.connect = self._connect
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    async def _connect(self, host: str, port: int) -> None:
        if self.world.at_address(host) is None:
            await self.loop.nap(10)
            raise OSError("no route to host")
        await self.loop.nap(0.002)
        raise ConnectionRefusedError(host)

    async def _whole(self) -> None:
        await fleet.found(self.store.database(), self.world, self.settings, self.order.servers)
        self.faults.schedule(self.plan)
        self.controllers.begin()
        self._minute()
        await self.loop.nap(self.order.hours * 3600)
        self.controllers.stopped = True
        for invariant in self.invariants:
            invariant.ended()

    # Hearing

    def note(self, *what: object) -> None:
        """Into the trace: everything that can be told apart from outside."""
        line = f"{self.loop.time():.6f} {' '.join(map(str, what))}"
        self.trace.update(line.encode())
        if self.log is not None:
            self.log.append(line)

    def say(self, line: str) -> None:
        """Into the log alone."""
        if self.log is not None:
            self.log.append(f"{self.loop.time():.6f} {line}")

    def autonomy(self) -> dict[str, Any]:
        return self._autonomy.report(self.order.hours)

    def _heard(self, effect: Effect) -> None:
        self.counts[f"{effect.source}.{effect.verb}"] += 1
        self.note(effect.source, effect.verb, effect.target, effect.process, effect.changed)
        self._autonomy.effect(effect)
        for invariant in self.invariants:
            invariant.effect(effect)

    def _told(self, process: Process | None, tables: frozenset[str]) -> None:
        if "servers" in tables:
            rows = self.store.reader.execute("SELECT live_name, id FROM servers WHERE live_name IS NOT NULL")
            self._names = dict(rows.fetchall())
        self.counts["commits"] += 1
        self.note("commit", process, *sorted(tables))
        self.controllers.woken(process, tables)
        self.ledger.refresh(process, tables)
        for invariant in self.invariants:
            invariant.committed(process, tables)

    def _before(self, process: Process | None, tables: frozenset[str]) -> None:
        for invariant in self.invariants:
            invariant.before_commit(process, tables)

    def _doubted(self, source: str) -> None:
        self.scene.doubts[source] = self.loop.time()

    def _minute(self) -> None:
        if not self.controllers.stopped:
            self.loop.after(60.0, self._minute)
        self._autonomy.minute()
        for invariant in self.invariants:
            invariant.minute()

    def _broken(self, violation: Violation) -> None:
        """Ends the run, unless another invariant is looked for."""
        self.violations.append(violation)
        self.note("broken", violation)
        if self.stop_at in (None, violation.name):
            self.loop.failure = self.loop.failure or violation
            raise violation

    def _swept(self, process: Process, result: SweepResult | None) -> None:
        outcome = result.outcome if result is not None else "raised"
        self.counts[f"sweeps.{outcome}"] += 1
        self.note("swept", process, outcome, *(result.outcomes if result is not None else ()))
        for invariant in self.invariants:
            invariant.swept(process, result)
