"""What cells of the two controllers' matrix have in common: something is wrong, one stands still or waits, the other heals, all go on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import select

from flows.state import tables as t
from tests.support.drifts import DRIFTS, Drift
from tests.support.loops import ABANDONED, LoopController
from tests.support.rig import EPOCH_S, HEALED_S, LEASE_S, Rig, beyond_fenced
from tests.support.watch import Watch

#: A renewal may have been sent shortly before its holder stood still, and a commit takes its time.
SLACK_S = 1.0


@contextlib.asynccontextmanager
async def drifted(rig: Rig, *names: str | Drift) -> AsyncIterator[list[Watch]]:
    """Nobody sweeps, and this is wrong. At the end all is as before, and nobody sweeps."""
    drifts = [DRIFTS[name] if isinstance(name, str) else name for name in names]
    await rig.up()
    try:
        for drift in drifts:
            await drift.make(rig)
        yield [await Watch.begun(rig, drift) for drift in drifts]
    finally:
        await rig.lab("DELETE", "/faults")
        for wire in rig.wires.values():
            await wire.mend()
        for one in rig.both:
            if one.stands_still:
                one.proceed()
        for drift in drifts:
            if drift.restore is not None:
                await rig.up()
                await drift.restore(rig)
        await rig.up()


async def stood_still(rig: Rig, one: LoopController, drift: Drift, phase: str, point: str) -> float:
    """``one`` sweeps and stands still in that phase; since when (monotonic)."""
    mark = len(one.events)
    if phase == "inside":
        await held(rig, drift, one)
        one.stop()
    else:
        if phase == "renewal":  # a sweep that lasts
            await rig.lab("POST", "/faults", target="bridge", mode="slow", call="GET /servers", seconds=1.0, count=1)
        await one.order(stop_at=point.format(action=drift.action, call=drift.call))
        await rig.go(one)
        await one.heard(lambda e: "stopped" in e, f"stopped at {point}", mark, HEALED_S)

    async def still() -> bool:
        return one.stands_still

    await rig.until("it stands still", still, HEALED_S)
    return time.monotonic()


async def held(rig: Rig, drift: Drift, *which: LoopController) -> None:
    """These sweep, and the first such call of theirs is at its receiver: it will go on when the faults are cleared."""
    target, call = drift.held
    fault = await rig.lab("POST", "/faults", target=target, mode="hold", call=call, count=1)
    await rig.go(*which)

    async def met() -> bool:
        return any(f["id"] == fault["id"] and f["hits"] for f in (await rig.lab("GET", "/faults"))["faults"])

    await rig.until("the call at its receiver", met, HEALED_S)


def healed_within_one_expiry(b: LoopController, drift: Drift, at: float, mark: int) -> None:
    """Counted in sweeps: the first one after the epoch's expiry has it, and the first one after the lease's heals (or the next, where
    two must see it). So it is at whatever speed the machine has."""
    sweeps = _turns(b.events[mark:])
    assert all(end.get("sweep") in ("clean", "findings") for begin, end in sweeps if begin > at + EPOCH_S + SLACK_S), sweeps
    healed = [begin for begin, end in sweeps if any(outcome == "repaired" for _, outcome in end.get("repairs", ()))]
    after = [begin for begin, _ in sweeps if begin > at + max(LEASE_S, EPOCH_S) + SLACK_S]
    late = after[drift.confirm :]  # no sweep that may be this late was needed
    assert not healed or not late or healed[0] < late[0], sweeps


def _turns(events: Sequence[dict[str, Any]]) -> list[tuple[float, dict[str, Any]]]:
    """When each sweep began, and how it ended."""
    turns, began = [], 0.0
    for event in events:
        if "begins" in event:
            began = event["at"]
        elif began and event.keys() & {"sweep", "failed"}:
            turns.append((began, event))
            began = 0.0
    return turns


async def goes_on(rig: Rig, one: LoopController, watch: Watch, *, late: bool = False) -> None:
    """What was stopped goes on, its late call first: it is refused, and the sweep ends with nothing written but ``fenced``. Then all go on."""
    mark = len(one.events)
    await rig.lab("DELETE", "/faults")
    if late:
        await rig.until("the late call is refused", watch.refused, HEALED_S)
    one.proceed()
    end = await one.over(mark)
    assert beyond_fenced([e for e in one.events[mark : one.events.index(end)] if "wrote" in e]) == []
    await all_go_on(rig)


async def all_go_on(rig: Rig, sweeps: int = 3) -> None:
    """One that ended itself, as a holder that cannot renew does, is started again. So many sweeps follow, of whomever."""
    for one in rig.both:
        assert set(one.exits) <= {ABANDONED}, f"{one.name} ended with {one.exits}:\n{one.said()}"
        if not one.alive:
            await one.start()
    await rig.go()
    for _ in range(sweeps):
        await a_sweep(rig)


async def a_sweep(rig: Rig) -> None:
    """The end of the next one that did its work, whosever it is."""
    waiting = [asyncio.ensure_future(one.swept(limit_s=HEALED_S)) for one in rig.both]
    done, late = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for one in late:
        one.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for one in done:
        one.result()


def past(at: float) -> Callable[[], Awaitable[bool]]:
    async def over() -> bool:
        return time.monotonic() > at

    return over


async def never_two_at_once(rig: Rig) -> None:
    async with rig.database.read() as tx:
        rows = list(await tx.execute(select(t.sweeps.c.epoch, t.sweeps.c.started_at, t.sweeps.c.finished_at).order_by(t.sweeps.c.epoch)))
    done = [row for row in rows if row.finished_at is not None]
    assert all(one.finished_at <= other.started_at for one, other in itertools.pairwise(done)), done


async def all_healed_once(rig: Rig, *names: str) -> None:
    """With both at work, and never two sweeps at once."""
    async with drifted(rig, *(names or ("register", "publish", "deregister", "withdraw"))) as watches:
        await rig.go()
        for watch in watches:
            await rig.until(f"{watch.drift.action} healed", watch.healed, HEALED_S)
        await all_go_on(rig)
        for watch in watches:
            await watch.one_effect()
        assert any(e.get("sweep") in ("clean", "findings") for one in rig.both for e in one.events[-20:])
    await never_two_at_once(rig)


async def back_within(rig: Rig, sweeps: int, so: Callable[[], Awaitable[bool]]) -> None:
    """It is so, at the latest when so many sweeps have ended that began from now on."""
    await rig.up()  # what came late is there, and no sweep has seen anything else
    for one in rig.both:
        assert one.alive, one.said()
    await rig.go()
    for _ in range(sweeps):
        await a_sweep(rig)
        if await so():
            return
    state = await rig.state()
    raise AssertionError(f"not back within {sweeps} sweeps: {state['parts'].get('cloudflare') or state['parts']['dns']}")
