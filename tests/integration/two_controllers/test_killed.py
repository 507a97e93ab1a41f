"""One is killed in every phase of a sweep and of a repair; what it had sent, and its receiver holds, goes with its connection."""

from __future__ import annotations

import pytest

from tests.support.disturbance import all_go_on, drifted, healed_within_one_expiry, stood_still
from tests.support.drifts import Kind
from tests.support.phases import cells
from tests.support.rig import HEALED_S, Rig

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="package")]
#: Of those that are no single repair under a lease.
ALWAYS = {("rehydrate", "after"), ("game", "ordering")}


@pytest.mark.parametrize(("name", "phase", "point"), list(cells(ALWAYS)))
async def test_one_is_killed_and_the_other_heals(rig: Rig, name: str, phase: str, point: str) -> None:
    a, b = rig.a, rig.b
    async with drifted(rig, name) as [watch]:
        at = await stood_still(rig, a, watch.drift, phase, point)
        await a.kill()
        a.exits.clear()
        mark = len(b.events)
        await rig.go(b)
        await rig.until(f"{name} healed by the other", watch.healed, HEALED_S)
        if watch.drift.kind is Kind.LEASED:
            healed_within_one_expiry(b, watch.drift, at, mark)
        await rig.lab("DELETE", "/faults")
        await all_go_on(rig)
        await watch.one_effect()
