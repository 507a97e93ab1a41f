"""A world with two controllers: real MariaDB and Redis, wires between them that can be cut, and the lab's receivers as judges."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import select, update

from flows import bootstrap
from flows.act import executor
from flows.act.deps import Deps
from flows.api.deps import ApiDeps
from flows.api.serve import serve
from flows.domain.finding import Outcome
from flows.domain.operation import DEPLOYMENT_OF, OperationKind, OperationState, engine_key
from flows.domain.server import Server
from flows.state import attempts, control, operations, orders, servers
from flows.state import tables as t
from tests.support import fleet
from tests.support.controller import controller
from tests.support.loop_controller import DirectoryEngine
from tests.support.loops import LoopController
from tests.support.servers import DatabaseServer, Redis
from tests.support.tcprelay import TcpRelay

#: Production's proportions, shortened together.
INTERVAL_S, LEASE_S, EPOCH_S = 2.0, 4.0, 3.0
TIMES: Mapping[str, str] = {
    "ZLH_TIMING__SWEEP_S": f"{INTERVAL_S:g}",
    "ZLH_TIMING__LEASE_S": f"{LEASE_S:g}",
    "ZLH_TIMING__HEARTBEAT_S": "0.5",
    "ZLH_TIMING__CALL_S": "2",
    "ZLH_TIMING__MARGIN_S": "0.4",
    "ZLH_TIMING__EPOCH_S": f"{EPOCH_S:g}",
    "ZLH_TIMING__EPOCH_RENEW_S": "0.5",
    "ZLH_TIMING__OBSERVE_S": "3",
    "ZLH_TIMING__SWEEP_LIMIT_S": "15",
    "ZLH_PROXMOX__TIMEOUT_S": "2",
    "ZLH_AGENT__TIMEOUT_S": "1",
    "ZLH_PROXY__TIMEOUT_S": "1.5",
    "ZLH_DNS__TIMEOUT_S": "1.5",
    "ZLH_DATABASE__BUSY_TIMEOUT_S": "2",
    "ZLH_REDIS__TIMEOUT_S": "0.5",
}
#: While the world is made, nothing is proven: a slow machine may take its time.
PATIENT: Mapping[str, str] = {
    "ZLH_TIMING__LEASE_S": "60",
    "ZLH_TIMING__STEP_FACTOR": "1",
}
_numbers = itertools.count(1)
#: Until something is healed, however slow the machine is; how soon it must be is counted in sweeps, not in seconds.
HEALED_S = 45.0


class Rig:
    """``a`` and ``b`` are the controllers, ``wires`` their connections, by ``a.database``, ``a.redis``, and so on. ``database`` and ``deps``
    are the test's own. Whatever is submitted is run by bare executors."""

    def __init__(self, world: fleet.World, deps: Deps, engine: Path) -> None:
        self.world, self.deps, self.database = world, deps, deps.database
        self.a: LoopController
        self.b: LoopController
        self.wires: dict[str, TcpRelay] = {}
        self.engine = engine
        self.game: Server
        self.dev: Server
        self.operation_id = ""
        self.stop_run_at = ""
        self.runs: dict[str, asyncio.subprocess.Process] = {}

    @property
    def both(self) -> Sequence[LoopController]:
        return (self.a, self.b)

    @property
    def fqdn(self) -> str:
        return f"{self.game.name}.play.example"

    async def lab(self, method: str, path: str, **json: object) -> Any:
        return await asyncio.to_thread(self.world.control, method, path, **json)

    async def state(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self.lab("GET", "/state")
        return found

    async def until(self, what: str, look: Callable[[], Awaitable[object]], limit_s: float) -> float:
        """Seconds until it held."""
        began = time.monotonic()
        while not await look():
            if time.monotonic() - began > limit_s:
                said = "\n".join(f"{c.name} {e}" for c in self.both for e in c.since(began - 5)[-40:] if "begins" not in e)
                raise AssertionError(f"{what}: not in {limit_s:g} s\n{said}")
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def up(self) -> None:
        """Both run, and no sweep does; nothing of an earlier cell counts."""
        for one in self.both:
            if not one.alive:
                await one.start()
            await one.hold()
        async with self.database.write() as tx:
            await tx.execute(update(t.repairs).values(intent_at=t.repairs.c.intent_at - 3_600_000))

    async def go(self, *which: LoopController) -> None:
        for one in which or self.both:
            await one.order(hold=False)

    async def repairs(self) -> list[Any]:
        """Of every cell so far."""
        async with self.database.read() as tx:
            return list(await tx.execute(select(t.repairs).order_by(t.repairs.c.intent_at)))

    async def order(self, server_id: str, kind: OperationKind) -> str:
        """An operation, submitted at once; its id."""
        async with self.database.write() as tx:
            if kind is OperationKind.DELETE:
                ordered = await orders.delete(tx, server_id, "test", deadline_ms=600_000)
            else:
                ordered = await orders.control(tx, server_id, kind, "test", deadline_ms=600_000)
            generation = await control.generation(tx)
            waiting = await attempts.claim_for_submission(tx, "test", tx.now + 60_000, 10)
        assert ordered.operation is not None
        for s in waiting:
            key = engine_key(generation, s.operation_id, s.attempt)
            parameters = {"operation_id": s.operation_id, "attempt": s.attempt, "generation": generation}
            run = await DirectoryEngine(self.engine).submit(DEPLOYMENT_OF[s.kind], key, parameters, s.queue)
            async with self.database.write() as tx:
                await attempts.submitted(tx, s.operation_id, s.attempt, run)
        return ordered.operation.id

    async def ended(self, operation_id: str) -> None:
        """Waits for its success."""

        async def over() -> bool:
            async with self.database.read() as tx:
                operation = await operations.get(tx, operation_id)
            return operation is not None and operation.finished_at is not None

        await self.until(f"the end of operation {operation_id}", over, 2 * HEALED_S)
        async with self.database.read() as tx:
            operation = await operations.get(tx, operation_id)
        assert operation is not None and operation.state is OperationState.SUCCEEDED, operation

    async def work(self) -> None:
        """The worker: starts a run for each submission, once. The first one stands still at ``stop_run_at``, if that is set."""
        env = fleet.process_env(self.world) | TIMES
        try:
            while True:
                for path in self.engine.glob("*.json"):
                    run = self.runs.get(path.stem)
                    if run is None:
                        order = json.loads(path.read_text())
                        argv = [str(order[key]) for key in ("operation_id", "attempt", "generation")]
                        stop, self.stop_run_at = self.stop_run_at, ""
                        with (self.world.directory / "executors.log").open("ab") as log:
                            self.runs[path.stem] = await asyncio.create_subprocess_exec(
                                sys.executable, "-m", "tests.support.executor", *argv, env=env | {"EXECUTOR_STOP_AT": stop}, stdout=log, stderr=log
                            )
                    elif run.returncode is not None:
                        path.with_suffix(".ended").touch()
                await asyncio.sleep(0.1)
        finally:
            for run in self.runs.values():
                if run.returncode is None:
                    run.kill()
                    await run.wait()


def beyond_fenced(wrote: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What a superseded controller wrote beside its own outcome, marked ``fenced``. A renewal that was carried out before it stood still, and of
    which it reads the answer only now, is nothing that it wrote since: one that came late would have changed no row."""
    since = wrote[1:] if wrote and wrote[0]["wrote"] in ("epochs.renew", "heartbeat.renew") else wrote
    return [event for event in since if not _fenced(event["statements"])]


def _fenced(statements: Sequence[Any]) -> bool:
    tables = [(verb, table) for verb, table, *_ in statements]
    return tables == [("update", "repairs"), ("insert", "audit")] and Outcome.FENCED.value in statements[0][3]


@asynccontextmanager
async def front_door(world: fleet.World, deps: Deps) -> AsyncIterator[None]:
    """The control listener of the world's database, where its bridge asks for its backends."""
    token, stop = secrets.token_urlsafe(32), asyncio.Event()
    api = deps.settings.api.model_copy(update={"public_bind": "127.0.0.1:0", "control_bind": "127.0.0.1:0", "control_token": SecretStr(token)})
    settings = deps.settings.model_copy(update={"api": api})
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    catalog = bootstrap.catalog(settings)
    serving = asyncio.create_task(serve(ApiDeps(deps.database, settings, deps.route, catalog), stop, lambda _, control: ready.set_result(control)))
    try:
        url = f"http://{await asyncio.wait_for(ready, 30)}"
        await asyncio.to_thread(world.control, "POST", "/bridge/configure", backends_url=url, token=token)
        yield
    finally:
        stop.set()
        await serving
        await catalog.close()


@asynccontextmanager
async def rig(directory: Path, mariadb: DatabaseServer, redis: Redis, lab: Mapping[str, object] | None = None) -> AsyncIterator[Rig]:
    """One game server and one developer container, active, in a lab with ``lab`` over its configuration. The bridge takes its backends from
    a front door."""
    url, gate = mariadb.create(f"zlh_two{next(_numbers)}"), redis.url
    world = await fleet.make(directory, lab=lab, ZLH_DATABASE__URL=url, ZLH_REDIS__URL=gate, **PATIENT)
    engine = directory / "engine"
    engine.mkdir()
    try:
        async with controller(world) as first, front_door(world, first.deps):
            made = [await fleet.order(world, first.deps.database, name, kind) for name, kind in (("two", "game"), ("bench", "dev"))]
            async with first.deps.database.read() as tx:
                generation = await control.generation(tx)
            ended = await asyncio.gather(*(executor.run(first.deps, operation_id, 1, generation) for operation_id, _ in made))
            assert set(ended) == {OperationState.SUCCEEDED.value}, ended
            found = Rig(world, first.deps, engine)
            async with first.deps.database.read() as tx:
                game, dev = [await servers.get(tx, server_id) for _, server_id in made]
            assert game is not None and dev is not None
            found.game, found.dev = game, dev
            working = asyncio.create_task(found.work())
            try:
                for name in ("a", "b"):
                    for peer, port in (("database", mariadb.port), ("redis", redis.port)):
                        found.wires[f"{name}.{peer}"] = await TcpRelay(port).open()
                    own = {
                        "ZLH_DATABASE__URL": url.replace(f":{mariadb.port}/", f":{found.wires[f'{name}.database'].port}/"),
                        "ZLH_REDIS__URL": gate.replace(f":{redis.port}/", f":{found.wires[f'{name}.redis'].port}/"),
                        "LOOP_ENGINE": str(engine),
                        **TIMES,
                    }
                    setattr(found, name, LoopController(name, fleet.process_env(world) | own, directory / f"{name}.log"))
                    await getattr(found, name).start()
                yield found
            finally:
                for one in (getattr(found, name, None) for name in ("a", "b")):
                    if one is not None:
                        await one.kill()
                working.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await working
                for wire in found.wires.values():
                    await wire.close()
    finally:
        world.close()
