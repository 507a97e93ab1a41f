"""Provisioning through a real Prefect server and worker, killed at six points in three ways, and while a run is pending. Real processes, the
simulated fleet.

One stack for all rows: each row's server is provisioned after the one before, so that a slot of the queue, a lease or a lock which an
interruption left behind would stop the next row too.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from flows.cli.demo import provisioning
from flows.cli.demo.stage import Stage
from flows.cli.stack import Stack
from flows.clients.engine import PrefectEngine
from flows.domain.operation import engine_key
from flows.state import control
from tests.support.kills import WAYS, interrupted, order, ordered_about, over
from tests.support.stacks import ScratchStack, acting, standing

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

POINTS = ("create_container", "start_container", "trust", "deploy_agent", "prepare_workload", "start_workload")
#: Steps take as long as it needs to hit them.
SLOW = {"proxmox": {"timings": {"clone_s": 3.0, "start_s": 3.0}}, "agents": {"start_s": 4.0}, "runner": {"task_s": 0.15}}
#: A row is a way to die; one cell of each in CI, the whole matrix is soak.
IN_CI = {("trust", "worker"), ("deploy_agent", "both"), ("prepare_workload", "flow")}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("kills")
    (directory / "lab").mkdir()
    (directory / "lab" / "config.json").write_text(json.dumps(SLOW))
    with standing(ScratchStack(directory, fleet="sim", short=True, say=lambda _: None)) as stack:
        yield stack


@pytest.fixture
async def stage(stack: Stack) -> AsyncIterator[Stage]:
    async with acting(stack, patience=3.0) as stage:
        yield stage


@pytest.mark.parametrize(
    ("point", "way"),
    [pytest.param(p, w, marks=() if (p, w) in IN_CI else pytest.mark.soak) for p in POINTS for w in WAYS],
)
async def test_a_provisioning_survives(stage: Stage, point: str, way: str) -> None:
    name = f"{point.replace('_', '-')}-{way}"
    operation_id = await order(stage, name)
    await interrupted(stage, name, operation_id, way, (point,))
    assert (await provisioning.nothing_left(stage)).failures == []
    await over(stage, await ordered_about(stage, name, "delete"))


async def test_a_run_that_is_pending_when_its_worker_dies(stage: Stage, stack: Stack) -> None:
    """The engine alone would keep it pending for good, and with it the only slot of the queue."""
    operation_id = await order(stage, "pending")
    async with stage.database.read() as tx:
        key = engine_key(await control.generation(tx), operation_id, 1)
    engine = PrefectEngine(stage.settings.engine)
    try:

        async def pending() -> Any:
            run = (await engine.runs([key])).get(key)
            return run if run is not None and run.state == "pending" else None

        run = await stage.until("the run pending", pending, 60)
        worker = stack.children["prefect-worker"].process
        assert worker is not None
        os.killpg(worker.pid, signal.SIGKILL)
        stage.kill_flow(run.id)
        worker.wait(30)
        stack.start_worker()
        await over(stage, operation_id, 240)  # the engine's automation gives it up after 45 s, and only then the slot is free
        assert (await provisioning.nothing_left(stage)).failures == []
        assert (await engine.runs([key]))[key].finished, "it keeps its slot"
    finally:
        await engine.close()
    await over(stage, await ordered_about(stage, "pending", "delete"))
