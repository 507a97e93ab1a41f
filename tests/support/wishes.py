"""What somebody may come to want while a call is on its way: how it is ordered, when the world is so, and how all becomes as before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from flows.domain.operation import OperationKind
from flows.errors import Busy, Conflict
from flows.state import accounts, operations
from tests.support import receivers
from tests.support.disturbance import all_go_on, back_within, drifted, stood_still
from tests.support.drifts import Drift, Kind, both_again
from tests.support.phases import REPAIR
from tests.support.receivers import State
from tests.support.rig import HEALED_S, Rig


@dataclass(frozen=True)
class Wish:
    """``so``: the world is as wanted, and nobody is at work on the server."""

    order: Callable[[Rig], Awaitable[None]]
    so: Callable[[Rig, State], Awaitable[bool]]
    back: Callable[[Rig], Awaitable[None]] | None = None


async def ordered(rig: Rig, kind: OperationKind) -> str:
    """As soon as whoever stands still does not hold the server any more; the operation's id."""
    found = ""

    async def taken() -> bool:
        nonlocal found
        try:
            found = await rig.order(rig.game.id, kind)
        except (Busy, Conflict):
            return False
        return True

    await rig.until(f"{kind} is ordered", taken, 60)
    return found


async def _idle(rig: Rig, server_id: str) -> bool:
    async with rig.database.read() as tx:
        return await operations.live_of(tx, server_id) is None


async def _suspend(rig: Rig) -> None:
    async with rig.database.write() as tx:
        await accounts.suspend(tx, rig.game.customer_id, "test")


async def _resume(rig: Rig) -> None:
    async with rig.database.write() as tx:
        await accounts.resume(tx, rig.game.customer_id, "test")


async def _at_rest(rig: Rig, state: State) -> bool:
    agent = state["parts"]["agents"]["agents"][str(rig.game.vmid)]
    return agent["state"] == "stopped" and not receivers.registered(state, rig.game.name) and await _idle(rig, rig.game.id)


async def _suspended(rig: Rig, state: State) -> bool:
    dev_down = state["containers"][str(rig.dev.vmid)]["status"] == "stopped"
    return dev_down and not receivers.records(state, rig.fqdn) and await _at_rest(rig, state)


async def _deleted(rig: Rig, state: State) -> bool:
    gone = str(rig.game.vmid) not in state["containers"]
    named = receivers.records(state, rig.fqdn) or receivers.registered(state, rig.game.name)
    return gone and not named and await _idle(rig, rig.game.id)


async def _plays(rig: Rig, state: State) -> bool:
    agent = state["parts"]["agents"]["agents"].get(str(rig.game.vmid), {})
    edge = receivers.registered(state, rig.game.name) and "A" in receivers.records(state, rig.fqdn)
    return bool(agent.get("ready")) and edge and await _idle(rig, rig.game.id)


async def _dev_runs(rig: Rig, state: State) -> bool:
    return state["containers"][str(rig.dev.vmid)]["status"] == "running" and await _idle(rig, rig.dev.id)


async def _stop(rig: Rig) -> None:
    await ordered(rig, OperationKind.STOP)


async def _start(rig: Rig) -> None:
    await ordered(rig, OperationKind.START)


async def _delete(rig: Rig) -> None:
    await ordered(rig, OperationKind.DELETE)


async def _again(rig: Rig) -> None:
    await rig.ended(await ordered(rig, OperationKind.START))


async def _resume_and_start(rig: Rig) -> None:
    await _resume(rig)
    await _start(rig)


WISHES: Mapping[str, Wish] = {
    "suspended": Wish(_suspend, _suspended, both_again),
    "stopped": Wish(_stop, _at_rest, _again),
    "deleted": Wish(_delete, _deleted),
    "started": Wish(_start, _plays),
    "resumed": Wish(_resume, _plays),
    "restarted": Wish(_resume_and_start, _plays),
    "dev resumed": Wish(_resume, _dev_runs),
}


async def late_publication(rig: Rig, drift: Drift, phase: str, *, converges: bool) -> None:
    """One that stands still before it, or whose receiver holds it, while the customer is suspended. One that ``converges`` arrives where its
    receiver held it, and may where its sender learns too late that it lost its lease; it is taken back within three sweeps."""
    a, b, wanted = rig.a, rig.b, WISHES["suspended"]

    async def so() -> bool:
        return await wanted.so(rig, await rig.state())

    async with drifted(rig, drift) as [watch]:
        await stood_still(rig, a, drift, phase, REPAIR[Kind.LEASED][phase])
        await wanted.order(rig)
        try:
            await rig.go(b)
            await rig.until("suspended by the other", so, 2 * HEALED_S)
            await b.hold()
            before, mark = len(await watch.effects()), len(a.events)
            await rig.lab("DELETE", "/faults")
            a.proceed()
            await a.over(mark, HEALED_S)
            late = len(await watch.effects()) - before
            assert late in ((1,) if converges and phase == "inside" else (0, 1) if converges else (0,))
            assert await so() is not bool(late)
            await back_within(rig, 3, so)
            await all_go_on(rig)
            assert await so()
        finally:
            await rig.up()
            await both_again(rig)
