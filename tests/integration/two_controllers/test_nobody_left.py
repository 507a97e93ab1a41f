"""Nobody is left who sweeps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from flows import bootstrap
from flows.report import watchdog
from tests.support import rig as rigs
from tests.support.disturbance import SLACK_S, all_go_on, drifted
from tests.support.drifts import Kind
from tests.support.phases import REPAIR
from tests.support.rig import HEALED_S, Rig

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="package")]


async def test_the_watchdog_alerts_when_both_are_gone_and_says_when_one_is_back(rig: Rig, tmp_path: Path) -> None:
    a, b = rig.a, rig.b
    patience = 4 * rigs.INTERVAL_S
    settings = rig.world.settings.model_copy(
        update={
            "timing": rig.world.settings.timing.model_copy(update={"sweep_s": rigs.INTERVAL_S}),
            "watchdog": rig.world.settings.watchdog.model_copy(update={"intervals": 4, "state_file": tmp_path / "watchdog.json"}),
        }
    )

    def told(state: Any) -> list[str]:
        return [m["content"] for messages in state["parts"]["discord"]["channels"].values() for m in messages if "no sweep finishes" in m["content"]]

    async with bootstrap.watchdog(settings) as parts, drifted(rig, "register") as [watch]:

        async def look() -> watchdog.Report:
            return await watchdog.check(**parts, settings=settings)

        await a.order(stop_at=REPAIR[Kind.LEASED]["before"].format(call="proxy.register"))
        await rig.go(a)
        await a.heard(lambda e: "stopped" in e, "stopped", len(a.events) - 5)
        assert int(await look()) == watchdog.WELL
        at = time.monotonic()
        await a.kill()
        await b.kill()

        async def alerted() -> bool:
            return watchdog.NO_SWEEP in {problem.name for problem in (await look()).problems}

        await rig.until("it notices", alerted, patience + HEALED_S)
        assert time.monotonic() - at > patience - rigs.INTERVAL_S - SLACK_S
        await alerted()
        assert len(told(await rig.state())) == 1
        b.exits.clear()
        await b.start()
        await rig.until("healed by the one that is back", watch.healed, HEALED_S)

        async def over() -> bool:
            return not await alerted()

        await rig.until("it says that it is over", over, HEALED_S)
        messages = told(await rig.state())
        assert len(messages) == 2
        assert "over" in messages[-1]
        a.exits.clear()
        await a.start()
        await all_go_on(rig)
        await watch.one_effect()
