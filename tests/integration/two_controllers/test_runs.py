"""A run of an operation stands still for longer than its lease, and goes on when another attempt has come to its end."""

from __future__ import annotations

import asyncio

import pytest

from flows.domain.operation import OperationKind, OperationState
from flows.state import operations
from tests.support.disturbance import all_go_on
from tests.support.drifts import DRIFTS
from tests.support.loops import ABANDONED
from tests.support.rig import HEALED_S, Rig
from tests.support.watch import Watch

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="package")]
#: Boundaries of a restart at which its run stands still. Where no further one is left, the operation has ended by then.
STEPS = ("deregister_proxy", "restart_workload", "publish_dns", "register_proxy")
RUN = ["claimed", *(f"{step}:do:{point}" for step in STEPS for point in ("begun", "effect", "done"))]
ALWAYS = "restart_workload:do:begun"


@pytest.mark.parametrize("boundary", [pytest.param(b, marks=[] if b == ALWAYS else [pytest.mark.soak]) for b in RUN])
async def test_a_run_stands_still_longer_than_its_lease_and_goes_on(rig: Rig, boundary: str) -> None:
    """A controller takes the operation over, the next attempt carries it to its end, and what the first one still does is refused."""
    await rig.up()
    try:
        watch = await Watch.begun(rig, DRIFTS["orphaned"])
        rig.stop_run_at = boundary
        operation_id = await rig.order(rig.game.id, OperationKind.RESTART)
        await rig.go()
        rig.operation_id = operation_id
        await rig.until("taken over and ended", watch.healed, 2 * HEALED_S)
        stopped = next(run for name, run in rig.runs.items() if name.endswith(f"{operation_id}_1"))
        assert stopped.returncode is None
        async with rig.database.read() as tx:
            before = await operations.get(tx, operation_id)
        assert before is not None and before.state is OperationState.SUCCEEDED and before.attempt == 2
        stopped.send_signal(18)
        assert await asyncio.wait_for(stopped.wait(), HEALED_S) in (0, ABANDONED)
        async with rig.database.read() as tx:
            assert await operations.get(tx, operation_id) == before
        await all_go_on(rig)
        assert len(DRIFTS["orphaned"].effects(rig, await rig.state())) == watch._effects + 1
        state = await rig.state()
        assert await DRIFTS["register"].healed(rig, state) and await DRIFTS["publish"].healed(rig, state)
    finally:
        rig.stop_run_at = ""
        await rig.up()
        await rig.go()
