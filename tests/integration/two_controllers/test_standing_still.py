"""One stands still (SIGSTOP) for longer than its lease, in every phase of a sweep and of a repair, and goes on when the other has healed."""

from __future__ import annotations

import pytest

from tests.support.disturbance import SLACK_S, drifted, goes_on, healed_within_one_expiry, past, stood_still
from tests.support.drifts import Kind
from tests.support.phases import cells
from tests.support.rig import HEALED_S, LEASE_S, Rig

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="package")]
#: A late call, and a sweep that stands still between check and effect.
ALWAYS = {("register", "inside"), ("publish", "before"), ("rehydrate", "inside"), ("container", "ordered")}


@pytest.mark.parametrize(("name", "phase", "point"), list(cells(ALWAYS)))
async def test_one_stands_still_longer_than_its_lease_and_goes_on(rig: Rig, name: str, phase: str, point: str) -> None:
    a, b = rig.a, rig.b
    async with drifted(rig, name) as [watch]:
        at = await stood_still(rig, a, watch.drift, phase, point)
        mark = len(b.events)
        await rig.go(b)
        await rig.until(f"{name} healed by the other", watch.healed, HEALED_S)
        await rig.until("longer than the lease", past(at + LEASE_S + SLACK_S), 10)
        await b.swept()
        if watch.drift.kind is Kind.LEASED:
            healed_within_one_expiry(b, watch.drift, at, mark)
        await goes_on(rig, a, watch, late=phase == "inside" and not watch.drift.convergent)
        await watch.one_effect()
