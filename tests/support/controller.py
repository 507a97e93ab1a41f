"""A bare controller: submits and sweeps until something is true. The same code as the flows, without Prefect."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from flows import bootstrap
from flows.act.deps import Deps
from flows.act.sweep import SweepResult, sweep
from flows.domain.operation import DEPLOYMENT_OF, Operation, engine_key
from flows.state import attempts, control, operations
from tests.support.engine import ProcessEngine
from tests.support.fleet import World, process_env


class NoGate:
    """No Redis."""

    async def enter(self, holder: str, ttl_s: float) -> bool | None:
        return None

    async def renew(self, holder: str, ttl_s: float) -> bool | None:
        return None

    async def leave(self, holder: str) -> None:
        return None


@dataclass
class Controller:
    """``log`` holds what sweeps said; the executors' output is in ``executors.log`` of the world's directory."""

    world: World
    deps: Deps
    engine: ProcessEngine
    log: list[str]

    async def submit(self) -> None:
        """What ``zlh dispatch`` does with unclaimed attempts."""
        async with self.deps.database.write() as tx:
            generation = await control.generation(tx)
            waiting = await attempts.claim_for_submission(tx, "test", tx.now + 5000, 10)
        for s in waiting:
            key = engine_key(generation, s.operation_id, s.attempt)
            parameters = {"operation_id": s.operation_id, "attempt": s.attempt, "generation": generation}
            run = await self.engine.submit(DEPLOYMENT_OF[s.kind], key, parameters, s.queue)
            async with self.deps.database.write() as tx:
                await attempts.submitted(tx, s.operation_id, s.attempt, run)

    async def sweep(self) -> SweepResult:
        return await sweep(self.deps, NoGate(), self.log.append)

    async def operation(self, operation_id: str) -> Operation:
        async with self.deps.database.read() as tx:
            found = await operations.get(tx, operation_id)
        assert found is not None
        return found

    async def until(self, what: str, look: Callable[[], Awaitable[bool]], limit_s: float = 45.0) -> None:
        """Submits all the time and sweeps every second until ``look`` holds."""
        end, swept = time.monotonic() + limit_s, 0.0
        while not await look():
            if time.monotonic() >= end:
                tail = (self.world.directory / "executors.log").read_text()[-3000:]
                raise AssertionError(f"{what}: not in {limit_s} s\nsweeps: {self.log[-20:]}\nexecutors: {tail}")
            await self.submit()
            if time.monotonic() - swept >= 1.0:
                await self.sweep()
                swept = time.monotonic()
            await asyncio.sleep(0.1)

    async def ended(self, operation_id: str, limit_s: float = 45.0) -> Operation:
        """The operation at its end."""

        async def over() -> bool:
            return (await self.operation(operation_id)).finished_at is not None

        await self.until(f"operation {operation_id} ended", over, limit_s)
        return await self.operation(operation_id)


@contextlib.asynccontextmanager
async def controller(world: World, kill_at: Mapping[int, str] | None = None) -> AsyncIterator[Controller]:
    engine = ProcessEngine(process_env(world), world.directory / "executors.log", kill_at)
    async with bootstrap.deps(world.settings) as deps:
        try:
            yield Controller(world, replace(deps, engine=engine), engine, [])
        finally:
            await engine.close()
