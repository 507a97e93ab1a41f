"""``zlh validate``, ``zlh engine reset`` and ``post-migration`` on a whole running stack: Prefect, worker, Redis, the simulated fleet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.cli.demo import provisioning
from flows.cli.demo.stage import Stage
from flows.cli.stack import Stack
from flows.clients.engine import PrefectEngine
from flows.clients.engine_setup import EngineSetup
from flows.domain.operation import Queue
from flows.state import control
from tests.support.kills import order, ordered_about, over
from tests.support.servers import Redis, running
from tests.support.stacks import ScratchStack, acting, standing, zlh

pytestmark = [pytest.mark.services, pytest.mark.soak, pytest.mark.timeout(900)]


class WithRedis(ScratchStack):
    """Redis stands in front of the sweep; a machine that is busy with other tests gets the time that Prefect's first start needs there."""

    url = ""

    async def _set_up_engine(self, home: Path) -> None:
        setup = EngineSetup(self.settings.engine, home)
        try:
            await setup.wait_healthy(240)
        finally:
            await setup.close()
        await super()._set_up_engine(home)

    def _own_values(self) -> dict[str, str]:
        return super()._own_values() | {"ZLH_REDIS__URL": self.url, "ZLH_TIMING__SWEEP_S": "20"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(Redis()) as redis:
        assert isinstance(redis, Redis)
        stack = WithRedis(tmp_path_factory.mktemp("migrated"), fleet="sim", say=lambda _: None)
        stack.url = redis.url
        with standing(stack):
            yield stack


@pytest.fixture
async def stage(stack: Stack) -> AsyncIterator[Stage]:
    async with acting(stack) as stage:
        yield stage


async def settled(stack: Stack) -> None:
    """The first sweep has run, and its worker has beaten."""
    async with asyncio.timeout(240):
        while (await zlh(stack, "status"))[0] == 3:
            await asyncio.sleep(5)


async def test_a_running_stack_is_consistent_and_what_disturbs_it_is_named(stack: Stack, stage: Stage) -> None:
    await settled(stack)
    status, said = await zlh(stack, "validate", "--json")
    assert status == 0, said
    looked = "; ".join(json.loads(said)["looked"])
    assert "1 of the engine's workers online" in looked
    second = stack.start_worker  # a second worker, as one that was forgotten on the old host
    first = stack.children["prefect-worker"]
    try:
        second()
        async with asyncio.timeout(240):
            while True:
                status, said = await zlh(stack, "validate", "workers", "--json")
                rules = [f["rule"] for f in json.loads(said)["findings"]]
                if rules == ["too_many_workers"]:
                    break
                await asyncio.sleep(5)
        assert status == 1
    finally:
        stack.children["prefect-worker"].stop()
        stack.children["prefect-worker"] = first


async def test_the_engines_database_is_thrown_away_under_an_order(stack: Stack, stage: Stage) -> None:
    """Forced, in the middle of a creation: the run is fenced, and the creation goes on where it was."""
    operation_id = await order(stage, "survivor")

    async def claimed() -> bool:
        return (await stage.operation(operation_id)).claimed > 0

    await stage.until("the creation begun", claimed, 240)
    status, said = await zlh(stack, "engine", "reset", "--yes")
    assert status == 1
    assert "--force" in said
    async with stage.database.read() as tx:
        before = await control.generation(tx)
    status, said = await zlh(stack, "engine", "reset", "--yes", "--force", "--json")
    assert json.loads(said)["generation"] > before
    await over(stage, operation_id, 240)
    await over(stage, await ordered_about(stage, "survivor", "delete"))


async def test_redis_is_emptied(stack: Stack) -> None:
    status, said = await zlh(stack, "redis", "reset", "--yes", "--json")
    told: dict[str, Any] = json.loads(said)
    assert status == 0, said
    assert told["looked"][0].startswith("sweep ")
    status, said = await zlh(stack, "redis", "reset", "--all", "--yes", "--json")
    assert status == 0, said


async def test_one_controlled_creation(stack: Stack) -> None:
    status, said = await zlh(stack, "validate", "provisioning", "--yes", "--json")
    assert status == 0, said


async def test_the_deployment_passes(stack: Stack) -> None:
    status, said = await zlh(stack, "validate", "post-migration", "--yes")
    assert status == 0, said
    assert "completed" in said
    assert (await zlh(stack, "intake"))[0] == 0


async def test_a_run_that_dies_leaves_intake_closed_and_the_next_one_opens_it(stack: Stack, stage: Stage) -> None:
    """The next one in a process of its own, as where the engine is in doubt."""
    engine, key = PrefectEngine(stage.settings.engine), "post-migration:dies"

    async def closed() -> bool:
        async with stage.database.read() as tx:
            return await control.intake_closed(tx)

    async def ended() -> str | None:
        run = (await engine.runs([key])).get(key)
        return run.state if run is not None and run.finished else None

    try:
        run_id = await engine.submit("post-migration", key, {}, Queue.REPAIRS)
        await stage.until("intake closed", closed, 120)
        assert stage.kill_flow(run_id)
        assert await stage.until("the run given up", ended, 120) == "crashed"
    finally:
        await engine.close()
    wish = {**provisioning.GAME, "version": await stage.version("jar", "fabric"), "memory_mb": 1024, "name": "refused", "request_nonce": "refused"}
    assert (await stage.call("acme", "POST", "/api/servers/create", wish)).status_code == 503
    assert (await zlh(stack, "intake"))[0] == 1
    status, said = await zlh(stack, "validate", "post-migration", "--here", "--yes")
    assert status == 0, said
    assert "passed: orders are taken" in said
    assert (await zlh(stack, "intake"))[0] == 0
    await over(stage, await stage.order("acme", wish), 240)
    await over(stage, await ordered_about(stage, "refused", "delete"))
