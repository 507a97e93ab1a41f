"""Two controllers on one world, disturbed in every phase: receivers get no second effect, the loser writes nothing but ``fenced``, and the
other one heals within one expiry. One cell of each row always runs, the whole matrix in ``make soak``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select

from flows import bootstrap
from flows.domain.operation import OperationKind, OperationState
from flows.report import watchdog
from flows.state import operations
from flows.state import tables as t
from tests.support import rig as rigs
from tests.support.databases import mariadb, redis_server
from tests.support.drifts import DRIFTS, Drift
from tests.support.loops import ABANDONED, LoopController
from tests.support.rig import EPOCH_S, HEALED_S, LEASE_S, Rig, beyond_fenced
from tests.support.servers import MariaDB, Redis

__all__ = ["mariadb", "redis_server"]

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]

#: Where a sweep may stand still: ``{call}`` and ``{action}`` are the drift's. In the middle of a transaction it holds that one's locks.
PHASES = {
    "begin": "tx:epochs.begin:commit",
    "begun": "tx:epochs.begin:done",
    "renewal": "tx:epochs.renew:commit",
    "recording": "tx:sweep._record:commit",
    "recorded": "tx:sweep._record:done",
    "finishing": "tx:sweep._finish:commit",
}
LEASED = {
    "intent": "tx:repair._intent:commit",
    "intended": "repair:{action}:intent",
    "before": "call:{call}:before",
    "inside": "",
    "after": "call:{call}:after",
    "effect": "repair:{action}:effect",
    "outcome": "tx:repair._outcome:commit",
    "told": "tx:repair._outcome:done",
}
OPERATION = {"order": "tx:repair._operation:commit", "ordered": "repair:{action}:effect"}
SUBMISSION = {
    "intent": "tx:repair._submission:commit",
    "intended": "repair:{action}:intent",
    "taking": "tx:submission._take:commit",
    "before": "call:{call}:before",
    "after": "call:{call}:after",
    "noting": "tx:submission._judge:commit",
    "outcome": "tx:repair._outcome:commit",
}
OPERATIONS = ("orphaned", "unsubmitted")
#: A renewal may have been sent shortly before its holder stood still, and a commit takes its time.
SLACK_S = 1.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory, mariadb: MariaDB, redis_server: Redis) -> AsyncIterator[Rig]:
    async with rigs.rig(tmp_path_factory.mktemp("two"), mariadb, redis_server) as made:
        yield made


@contextlib.asynccontextmanager
async def drifted(rig: Rig, *kinds: str) -> AsyncIterator[list[Watch]]:
    """Nobody sweeps, and this is wrong. At the end all is as before."""
    await rig.up()
    try:
        for kind in kinds:
            await DRIFTS[kind].make(rig)
        yield [await Watch.begun(rig, DRIFTS[kind]) for kind in kinds]
    finally:
        await rig.lab("DELETE", "/faults")
        for wire in rig.wires.values():
            await wire.mend()
        for one in rig.both:
            if one.stands_still:
                one.proceed()
        for kind in kinds:
            restore = DRIFTS[kind].restore
            if restore is not None:
                await rig.up()
                await restore(rig)
        await rig.up()
        await rig.go()


class Watch:
    """One drift, and what receivers had written down before it was healed."""

    def __init__(self, rig: Rig, drift: Drift, effects: int, refused: int) -> None:
        self.rig, self.drift, self._effects, self._refused = rig, drift, effects, refused

    @classmethod
    async def begun(cls, rig: Rig, drift: Drift) -> Watch:
        state = await rig.state()
        return cls(rig, drift, len(drift.effects(rig, state)), len(drift.refused(rig, state)))

    async def healed(self) -> bool:
        return await self.drift.healed(self.rig, await self.rig.state())

    async def refused(self) -> bool:
        """Whether a late call was."""
        return len(self.drift.refused(self.rig, await self.rig.state())) > self._refused

    async def one_effect(self) -> None:
        """Right at the end, by one effect at the receiver; at Proxmox a convergent one may have come late. Each intent has one outcome."""
        state = await self.rig.state()
        assert await self.drift.healed(self.rig, state)
        effects = self.drift.effects(self.rig, state)[self._effects :]
        assert len(effects) == 1 or (self.drift.convergent and len(effects) == 2), effects
        rows = [row for row in await self.rig.repairs() if row.action == self.drift.action]
        said = [row.outcome for row in rows]
        assert said.count("repaired") <= 1, rows
        assert set(said) <= {"repaired", "fenced", "unverified", "already_healed", "failed"}, rows


def stops() -> Iterator[Any]:
    """A late call, and a sweep that stands still between check and effect, are the cells that always run."""
    always = {("register", "inside"), ("publish", "before")}
    for kind in DRIFTS:
        own = {"orphaned": OPERATION, "unsubmitted": SUBMISSION}.get(kind, LEASED)
        for phase, point in (PHASES | own).items():
            marks = [] if (kind, phase) in always else [pytest.mark.soak]
            yield pytest.param(kind, phase, point, id=f"{kind}-{phase}", marks=marks)


@pytest.mark.parametrize(("kind", "phase", "point"), list(stops()))
async def test_one_stands_still_longer_than_its_lease_and_goes_on(rig: Rig, kind: str, phase: str, point: str) -> None:
    a, b = rig.a, rig.b
    async with drifted(rig, kind) as [watch]:
        at = await _stood_still(rig, a, watch.drift, phase, point)
        mark = len(b.events)
        await rig.go(b)
        await rig.until(f"{kind} healed by the other", watch.healed, HEALED_S)
        await rig.until("longer than the lease", _past(at + LEASE_S + SLACK_S), 10)
        await b.swept()
        if kind not in OPERATIONS:
            _healed_within_one_expiry(b, watch.drift, at, mark)
        await _goes_on(rig, a, watch, late=phase == "inside" and not watch.drift.convergent)
        await watch.one_effect()


async def _stood_still(rig: Rig, one: LoopController, drift: Drift, phase: str, point: str) -> float:
    """``one`` sweeps and stands still in that phase; since when (monotonic)."""
    mark = len(one.events)
    if phase == "inside":
        await _held(rig, drift, one)
        one.stop()
    else:
        if phase == "renewal":  # a sweep that lasts
            await rig.lab("POST", "/faults", target="bridge", mode="slow", call="GET /servers", seconds=1.0, count=1)
        await one.order(stop_at=point.format(action=drift.action, call=drift.call))
        await rig.go(one)
        await one.heard(lambda e: "stopped" in e, f"stopped at {point}", mark, HEALED_S)

    async def still() -> bool:
        return one.stands_still

    await rig.until("it stands still", still, 10)
    return time.monotonic()


async def _held(rig: Rig, drift: Drift, *which: LoopController) -> None:
    """These sweep, and the first such call of theirs is at its receiver: it will go on when the faults are cleared."""
    target, call = drift.held
    fault = await rig.lab("POST", "/faults", target=target, mode="hold", call=call, count=1)
    await rig.go(*which)

    async def met() -> bool:
        return any(f["id"] == fault["id"] and f["hits"] for f in (await rig.lab("GET", "/faults"))["faults"])

    await rig.until("the call at its receiver", met, HEALED_S)


def _healed_within_one_expiry(b: LoopController, drift: Drift, at: float, mark: int) -> None:
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


async def _goes_on(rig: Rig, one: LoopController, watch: Watch, *, late: bool = False) -> None:
    """What was stopped goes on, its late call first: it is refused, and the sweep ends with nothing written but ``fenced``. Then all go on."""
    mark = len(one.events)
    await rig.lab("DELETE", "/faults")
    if late:
        await rig.until("the late call is refused", watch.refused, 10)
    one.proceed()
    end = await one.over(mark)
    assert beyond_fenced([e for e in one.events[mark : one.events.index(end)] if "wrote" in e]) == []
    await _all_go_on(rig)


async def _all_go_on(rig: Rig) -> None:
    """One that ended itself, as a holder that cannot renew does, is started again. Three sweeps."""
    for one in rig.both:
        assert set(one.exits) <= {ABANDONED}, one.exits
        if not one.alive:
            await one.start()
    await rig.go()
    for _ in range(3):
        await asyncio.wait([asyncio.ensure_future(one.swept(limit_s=HEALED_S)) for one in rig.both], return_when=asyncio.FIRST_COMPLETED)


def _past(at: float) -> Callable[[], Awaitable[bool]]:
    async def past() -> bool:
        return time.monotonic() > at

    return past


# ── Redis ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["cut", pytest.param("both", marks=pytest.mark.soak), pytest.param("gone", marks=pytest.mark.soak)])
async def test_without_redis_the_row_alone_decides(rig: Rig, redis_server: Redis, way: str) -> None:
    """Cut from one of them, from both, or its server gone."""
    if way == "gone":
        redis_server.stop()
    else:
        await rig.wires["a.redis"].cut()
        if way == "both":
            await rig.wires["b.redis"].cut()
    try:
        await _all_healed_once(rig)
    finally:
        if way == "gone":
            redis_server.start()


async def test_a_redis_that_forgets_everything_each_second(rig: Rig, redis_server: Redis) -> None:
    async def flush() -> None:
        with redis_server.client() as client:
            while True:
                await asyncio.to_thread(client.flushall)
                await asyncio.sleep(1.0)

    flushing = asyncio.create_task(flush())
    try:
        await _all_healed_once(rig)
    finally:
        flushing.cancel()
        await asyncio.wait({flushing})


async def _all_healed_once(rig: Rig, *kinds: str) -> None:
    """With both at work, and never two sweeps at once."""
    async with drifted(rig, *(kinds or ("register", "publish", "deregister", "withdraw"))) as watches:
        await rig.go()
        for watch in watches:
            await rig.until(f"{watch.drift.action} healed", watch.healed, HEALED_S)
        await _all_go_on(rig)
        for watch in watches:
            await watch.one_effect()
        assert any(e.get("sweep") in ("clean", "findings") for one in rig.both for e in one.events[-20:])
    await _never_two_at_once(rig)


async def _never_two_at_once(rig: Rig) -> None:
    async with rig.database.read() as tx:
        rows = list(await tx.execute(select(t.sweeps.c.epoch, t.sweeps.c.started_at, t.sweeps.c.finished_at).order_by(t.sweeps.c.epoch)))
    done = [row for row in rows if row.finished_at is not None]
    assert all(one.finished_at <= other.started_at for one, other in itertools.pairwise(done)), done


# ── the database ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["register", *(pytest.param(k, marks=pytest.mark.soak) for k in ("publish", "deregister", "withdraw", "stop"))])
@pytest.mark.parametrize("way", ["kill", pytest.param("stop", marks=pytest.mark.soak)])
async def test_the_database_is_restarted_while_a_call_is_on_its_way(rig: Rig, mariadb: MariaDB, kind: str, way: str) -> None:
    """Nobody stands still: the call may still come to its end, or its holder ends in time."""
    async with drifted(rig, kind) as [watch]:
        await _held(rig, watch.drift)
        (mariadb.kill if way == "kill" else mariadb.stop)()
        mariadb.start()
        await rig.lab("DELETE", "/faults")
        await _all_go_on(rig)
        await rig.until(f"{kind} healed", watch.healed, HEALED_S)
        await _all_go_on(rig)
        await watch.one_effect()


@pytest.mark.parametrize("kind", ["publish", *(pytest.param(k, marks=pytest.mark.soak) for k in ("register", "deregister", "withdraw", "stop"))])
async def test_one_is_cut_from_the_database_while_its_call_is_on_its_way(rig: Rig, kind: str) -> None:
    """It can renew nothing: it ends before its lease does, and the other one, with a newer token, comes before the late call."""
    a, b = rig.a, rig.b
    async with drifted(rig, kind) as [watch]:
        mark, told = len(b.events), len(a.events)
        await _held(rig, watch.drift, a)
        await rig.wires["a.database"].cut()
        at = time.monotonic()
        await rig.go(b)
        await rig.until(f"{kind} healed by the other", watch.healed, HEALED_S)
        _healed_within_one_expiry(b, watch.drift, at, mark)
        assert (await a.over(told)).get("exit") == ABANDONED
        await rig.lab("DELETE", "/faults")
        await rig.until("the late call is refused", watch.refused, 10)
        await rig.wires["a.database"].mend()
        await _all_go_on(rig)
        await watch.one_effect()


# ── the clock ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


def _write(file: Path, shift: str) -> None:
    file.write_text(shift)


@contextlib.asynccontextmanager
async def clock_of(one: LoopController, shift: str, file: Path) -> AsyncIterator[Callable[[str], None]]:
    """``one`` with a clock of its own, off by what ``file`` says, which may be changed meanwhile. Its monotonic time stays what it is."""
    assert FAKETIME, "libfaketime is not installed: playbooks/lab.yml installs it"
    _write(file, shift)
    env = dict(one.env)
    faked = {"LD_PRELOAD": str(FAKETIME[0]), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    await one.kill()
    one.exits.clear()
    one.env.update({**faked, "NO_FAKE_STAT": "1"})
    try:
        await one.start()
        yield lambda other: _write(file, other)
    finally:
        await one.kill()
        one.exits.clear()
        one.env = env
        await one.start()


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
        await _all_go_on(rig)
        for one in rig.both:
            assert not [e for e in one.events[mark:] if "exit" in e]
        for watch in watches:
            await watch.one_effect()
    await _never_two_at_once(rig)


@pytest.mark.soak
@pytest.mark.parametrize("shift", ["+7h", "-7h"])
@pytest.mark.parametrize("phase", ["before", "inside"])
async def test_a_wrong_clock_saves_nobody_who_stood_still(rig: Rig, tmp_path: Path, phase: str, shift: str) -> None:
    a, b = rig.a, rig.b
    async with clock_of(a, shift, tmp_path / "clock"), drifted(rig, "register") as [watch]:
        at = await _stood_still(rig, a, watch.drift, phase, LEASED[phase])
        mark = len(b.events)
        await rig.go(b)
        await rig.until("healed by the other", watch.healed, HEALED_S)
        _healed_within_one_expiry(b, watch.drift, at, mark)
        await _goes_on(rig, a, watch, late=phase == "inside")
        await watch.one_effect()


# ── runs of operations ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

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
        await _all_go_on(rig)
        assert len(DRIFTS["orphaned"].effects(rig, await rig.state())) == watch._effects + 1
        state = await rig.state()
        assert await DRIFTS["register"].healed(rig, state) and await DRIFTS["publish"].healed(rig, state)
    finally:
        rig.stop_run_at = ""
        await rig.up()
        await rig.go()


# ── nobody is left ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


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

        await a.order(stop_at=LEASED["before"].format(call="proxy.register"))
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
        await _all_go_on(rig)
        await watch.one_effect()
