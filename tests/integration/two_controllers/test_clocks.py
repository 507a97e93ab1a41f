"""A controller whose clock is wrong, and the database's clock set forward or back by more than any expiry."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.clocks import clock_of
from tests.support.disturbance import all_go_on, drifted, goes_on, healed_within_one_expiry, never_two_at_once, stood_still
from tests.support.drifts import DRIFTS, Kind
from tests.support.phases import REPAIR
from tests.support.rig import HEALED_S, Rig
from tests.support.watch import Watch

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="package")]


@pytest.mark.parametrize("shift", ["+7h", pytest.param("-7h", marks=pytest.mark.soak)])
async def test_a_controller_whose_clock_is_wrong_does_the_same(rig: Rig, tmp_path: Path, shift: str) -> None:
    """The database's clock judges every expiry. Alone it heals what its peers let it: a name server refuses a signature of another time, so
    what it holds is unknown, and stays so until the clock is right again. It takes nothing from the one whose clock is right."""
    a, b = rig.a, rig.b
    async with drifted(rig, "register", "publish"), clock_of(a, shift, tmp_path / "clock") as move:
        ready = [e for e in a.events if "ready" in e][-1]
        assert abs(ready["wall"] - time.time()) > 6 * 3600
        watches = [await Watch.begun(rig, DRIFTS[kind]) for kind in ("register", "publish")]
        await rig.up()
        mark = len(a.events)
        await rig.go(a)
        await rig.until("registered by the one whose clock is wrong", watches[0].healed, HEALED_S)
        seen = await a.heard(lambda e: e.get("sweep") == "findings", "a sweep", mark)
        assert "dns_record" in seen["skipped"], seen
        assert not await watches[1].healed()
        await rig.go(b)
        await rig.until("published by the one whose clock is right", watches[1].healed, HEALED_S)
        move("-7h" if shift.startswith("+") else "+7h")  # in the middle of everything
        await all_go_on(rig)
        for one in rig.both:
            assert not [e for e in one.events[mark:] if "exit" in e]
        for watch in watches:
            await watch.one_effect()
    await never_two_at_once(rig)


@pytest.mark.soak
@pytest.mark.parametrize("shift", ["+7h", "-7h"])
@pytest.mark.parametrize("phase", ["before", "inside"])
async def test_a_wrong_clock_saves_nobody_who_stood_still(rig: Rig, tmp_path: Path, phase: str, shift: str) -> None:
    a, b = rig.a, rig.b
    async with clock_of(a, shift, tmp_path / "clock"), drifted(rig, "register") as [watch]:
        at = await stood_still(rig, a, watch.drift, phase, REPAIR[Kind.LEASED][phase])
        mark = len(b.events)
        await rig.go(b)
        await rig.until("healed by the other", watch.healed, HEALED_S)
        healed_within_one_expiry(b, watch.drift, at, mark)
        await goes_on(rig, a, watch, late=phase == "inside")
        await watch.one_effect()
