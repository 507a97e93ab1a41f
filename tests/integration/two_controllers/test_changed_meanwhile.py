"""One stands still between check and effect, or its call is held at its receiver; meanwhile something else is wanted, and the other one sees
to it. What comes late changes nothing at agents, bridge and name server. At Proxmox it may, if it converges: the wanted state is back soon.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from flows.act import executor
from flows.domain.finding import Action
from flows.domain.operation import OperationState
from flows.state import control, servers
from tests.support import fleet
from tests.support.disturbance import all_go_on, drifted, stood_still
from tests.support.drifts import WIPED, Kind
from tests.support.phases import REPAIR
from tests.support.rig import HEALED_S, Rig
from tests.support.wishes import WISHES, late_publication

pytestmark = [pytest.mark.lab, pytest.mark.timeout(360), pytest.mark.asyncio(loop_scope="package")]
#: What was to be mended, and what is wanted when the call comes.
MEANWHILE = {
    "register": ("suspended", "stopped", "deleted"),
    "publish": ("suspended", "deleted"),
    "rehydrate": ("suspended",),
    "unready": ("started",),
    "stop": ("resumed", "restarted"),
}
ALWAYS = {("register", "suspended", "inside"), ("stop", "resumed", "before")}


def cells() -> Iterator[Any]:
    for name, wishes in MEANWHILE.items():
        for wish in wishes:
            for phase in ("before", "inside"):
                marks = [] if (name, wish, phase) in ALWAYS else [pytest.mark.soak]
                yield pytest.param(name, wish, phase, id=f"{name}-{wish}-{phase}", marks=marks)


@contextlib.asynccontextmanager
async def server_to_lose(rig: Rig) -> AsyncIterator[None]:
    """The rig's game is one that may be deleted."""
    await rig.up()
    kept, world = rig.game, rig.world
    operation_id, server_id = await fleet.order(world, rig.database, "lost")
    async with rig.database.read() as tx:
        generation = await control.generation(tx)
    assert await executor.run(rig.deps, operation_id, 1, generation) == OperationState.SUCCEEDED
    async with rig.database.read() as tx:
        game = await servers.get(tx, server_id)
    assert game is not None
    rig.game = game
    try:
        yield
    finally:
        if str(game.vmid) in (await rig.state())["containers"]:
            await rig.up()
            await WISHES["deleted"].order(rig)
        rig.game = kept


@pytest.mark.parametrize(("name", "wish", "phase"), list(cells()))
async def test_a_late_call_changes_nothing_that_is_wanted_by_then(rig: Rig, name: str, wish: str, phase: str) -> None:
    a, b, wanted = rig.a, rig.b, WISHES[wish]

    async def so() -> bool:
        return await wanted.so(rig, await rig.state())

    async with contextlib.AsyncExitStack() as stack:
        if wish == "deleted":
            await stack.enter_async_context(server_to_lose(rig))
        [watch] = await stack.enter_async_context(drifted(rig, name))
        await stood_still(rig, a, watch.drift, phase, REPAIR[Kind.LEASED][phase])
        await wanted.order(rig)
        if wanted.back is not None:
            stack.push_async_callback(_back, rig, wish)
        await rig.go(b)
        await rig.until(f"{wish} by the other", so, 2 * HEALED_S)
        if watch.drift.action is Action.REHYDRATE_PROXY:
            await rig.until("drift of the proxy healed, too", watch.effects, HEALED_S)
        before, mark = len(await watch.effects()), len(a.events)
        await rig.lab("DELETE", "/faults")
        if phase == "inside":
            await rig.until("the late call comes to nothing", watch.refused, HEALED_S)
        a.proceed()
        await a.over(mark, HEALED_S)
        assert len(await watch.effects()) == before, "the late call had an effect"
        assert await so()
        await all_go_on(rig)
        assert len(await watch.effects()) == before
        assert await so()


async def _back(rig: Rig, wish: str) -> None:
    back = WISHES[wish].back
    assert back is not None
    await rig.up()
    await back(rig)


@pytest.mark.soak
@pytest.mark.parametrize("phase", ["before", "inside"])
async def test_a_late_publication_of_a_name_that_is_free_again_is_taken_back(rig: Rig, phase: str) -> None:
    """The one that a prerequisite on the value seen cannot tell from one in time."""
    await late_publication(rig, WIPED, phase, converges=True)


@contextlib.asynccontextmanager
async def level_two(rig: Rig) -> AsyncIterator[None]:
    async with rig.database.write() as tx:
        await control.set_repair_level(tx, 2, "test")
    try:
        yield
    finally:
        async with rig.database.write() as tx:
            await control.set_repair_level(tx, 1, "test")


@pytest.mark.parametrize("phase", ["before", pytest.param("inside", marks=pytest.mark.soak)])
async def test_what_comes_late_to_proxmox_converges(rig: Rig, phase: str) -> None:
    """A container's shutdown, when its customer has paid: it may go down, and is up again by the controller's own doing. Level 2 allows it."""
    a, b, wanted = rig.a, rig.b, WISHES["dev resumed"]
    async with drifted(rig, "shutdown") as [watch], level_two(rig):
        await stood_still(rig, a, watch.drift, phase, REPAIR[Kind.LEASED][phase])
        await wanted.order(rig)
        await rig.go(b)
        await b.swept()
        mark = len(a.events)
        await rig.lab("DELETE", "/faults")
        a.proceed()
        await a.over(mark, HEALED_S)

        async def so() -> bool:
            return await wanted.so(rig, await rig.state())

        await all_go_on(rig)
        repairs = [repair for one in rig.both for e in one.events for repair in e.get("repairs", ())]
        ordered = [f"workload_stopped/{rig.dev.id}", "ordered"] in repairs
        assert ordered == bool(await watch.effects()), "what went down is ordered to start, within three sweeps"
        await rig.until("it runs again", so, HEALED_S)
        assert len(await watch.effects()) <= 2, "a shutdown and a start, or nothing"
