"""A run of an operation stands still for longer than its lease, and goes on when another attempt has come to its end; or it dies there."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from flows.domain.operation import Operation, OperationKind, OperationState
from flows.state import operations
from tests.support.disturbance import all_go_on, drifted
from tests.support.drifts import DRIFTS
from tests.support.loops import ABANDONED, stands_still
from tests.support.rig import HEALED_S, Rig
from tests.support.watch import Watch

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="package")]
#: Steps of a restart that a customer orders, and of a start that the controller does, because the container died. At each boundary its run
#: stands still, or dies there. Where no further one is left, the operation has ended by then.
STEPS = {
    "orphaned": ("deregister_proxy", "restart_workload", "publish_dns", "register_proxy"),
    "container": ("start_container", "start_workload", "publish_dns", "register_proxy"),
}
ALWAYS = {("orphaned", "restart_workload:do:begun", "goes on"), ("container", "start_workload:do:begun", "goes on")}
ALWAYS |= {("container", "start_container:do:effect", "dies")}


def cells() -> Iterator[Any]:
    for name, steps in STEPS.items():
        for boundary in ("claimed", *(f"{step}:do:{point}" for step in steps for point in ("begun", "effect", "done"))):
            for then in ("goes on", "dies"):
                marks = [] if (name, boundary, then) in ALWAYS else [pytest.mark.soak]
                yield pytest.param(name, boundary, then, id=f"{name}-{boundary}-{then}", marks=marks)


@pytest.mark.parametrize(("name", "boundary", "then"), list(cells()))
async def test_a_run_stands_still_longer_than_its_lease(rig: Rig, name: str, boundary: str, then: str) -> None:
    """A controller takes the operation over, the next attempt carries it to its end, and what the first one still does is refused."""
    drift = DRIFTS[name]
    async with contextlib.AsyncExitStack() as stack:
        if name == "orphaned":  # it becomes so by itself
            await rig.up()
            watch = await Watch.begun(rig, drift)
            rig.stop_run_at = boundary
            rig.operation_id = await rig.order(rig.game.id, OperationKind.RESTART)
        else:
            [watch] = await stack.enter_async_context(drifted(rig, drift))
            rig.stop_run_at = boundary
        stack.callback(setattr, rig, "stop_run_at", "")
        await rig.go()
        stopped = await _stopped(rig)
        if then == "dies":
            stopped.kill()
        await rig.until("taken over and ended", watch.healed, 2 * HEALED_S)
        before = await _newest(rig)
        assert before.state is OperationState.SUCCEEDED and before.attempt == 2
        if then == "goes on":
            assert stopped.returncode is None
            stopped.send_signal(signal.SIGCONT)
            assert await asyncio.wait_for(stopped.wait(), HEALED_S) in (0, ABANDONED)
        assert await _newest(rig) == before
        await all_go_on(rig)
        effects = await watch.effects()
        assert len(effects) == 1 or (drift.convergent and len(effects) == 2), effects
        state = await rig.state()
        assert await DRIFTS["register"].healed(rig, state) and await DRIFTS["publish"].healed(rig, state)
    await rig.up()


async def _newest(rig: Rig) -> Operation:
    async with rig.database.read() as tx:
        return (await operations.list_(tx, server_id=rig.game.id, limit=1))[0]


async def _stopped(rig: Rig) -> asyncio.subprocess.Process:
    """The first run of the game's newest operation, once it stands still."""
    found: list[asyncio.subprocess.Process] = []

    async def still() -> bool:
        if rig.stop_run_at:  # none has begun that would
            return False
        operation = await _newest(rig)
        found[:] = [run for name, run in rig.runs.items() if name.endswith(f"{operation.id}_1")]
        return bool(found) and stands_still(found[0].pid)

    await rig.until("its run stands still", still, HEALED_S)
    return found[0]
