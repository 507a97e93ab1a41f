"""A controller whose clock is wrong, and the database's clock set forward or back by more than any expiry."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import update

from flows.state import tables as t
from tests.support import rig as rigs
from tests.support import servers
from tests.support.clocks import ClockedMariaDB, clock_of
from tests.support.disturbance import all_go_on, drifted, goes_on, healed_within_one_expiry, held, never_two_at_once, stood_still
from tests.support.drifts import DRIFTS, Kind
from tests.support.phases import REPAIR
from tests.support.rig import HEALED_S, Rig
from tests.support.servers import Redis
from tests.support.watch import Watch

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="package")]


@pytest.fixture(scope="module")
def database_server() -> Iterator[ClockedMariaDB]:
    with servers.running(ClockedMariaDB()) as server:
        assert isinstance(server, ClockedMariaDB)
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def clocked(tmp_path_factory: pytest.TempPathFactory, database_server: ClockedMariaDB, redis_server: Redis) -> AsyncIterator[Rig]:
    """A world whose database's clock can be set."""
    async with rigs.rig(tmp_path_factory.mktemp("clocked"), database_server, redis_server) as made:
        yield made


#: What is done while the database's clock is set: somebody holds epoch and lease, and goes on, stands still, or is dead.
HOLDERS = ("at work", "stands still", "killed")
SET = [("+7h", "at work"), ("-7h", "killed")]


@pytest.mark.parametrize(
    ("shift", "holder"),
    [pytest.param(s, h, marks=[] if (s, h) in SET else [pytest.mark.soak]) for s in ("+7h", "-7h") for h in HOLDERS],
)
async def test_the_databases_clock_is_set_while_a_call_is_on_its_way(clocked: Rig, database_server: ClockedMariaDB, shift: str, holder: str) -> None:
    """Every expiry is over at once, or seems to lie hours ahead. Somebody heals within one expiry all the same, and nothing happens twice."""
    rig, a, b = clocked, clocked.a, clocked.b
    async with drifted(rig, "register") as [watch], once_set(rig, database_server):
        before = await now(rig)
        await held(rig, watch.drift, a)
        if holder == "stands still":
            a.stop()
        elif holder == "killed":
            await a.kill()
            a.exits.clear()
        at, mark = time.monotonic(), len(b.events)
        database_server.move(shift)
        moved = await now(rig) - before
        assert abs(moved) > 6 * 3_600_000 and (moved > 0) == shift.startswith("+"), "the database's clock is not what it should be"
        await rig.go(b)
        if holder == "at work":  # either may be the one: who renews in time keeps what it has
            await rig.lab("DELETE", "/faults")
            await rig.until("healed", watch.healed, HEALED_S)
        else:
            await rig.until("healed by the other", watch.healed, HEALED_S)
            healed_within_one_expiry(b, watch.drift, at, mark)
            if holder == "stands still":
                await goes_on(rig, a, watch, late=True)
            await rig.lab("DELETE", "/faults")
        await all_go_on(rig)
        await watch.one_effect()
        database_server.move("+0")  # set right again, in the middle of everything
        await all_go_on(rig)
        await watch.one_effect()


@contextlib.asynccontextmanager
async def once_set(rig: Rig, server: ClockedMariaDB) -> AsyncIterator[None]:
    """The clock is right afterwards, and nothing of the cell is from another time."""
    try:
        yield
    finally:
        server.move("+0")
        await rig.up()
        async with rig.database.write() as tx:
            await tx.execute(update(t.repairs).where(t.repairs.c.intent_at > tx.now - 3_600_000).values(intent_at=tx.now - 3_600_000))


async def now(rig: Rig) -> int:
    """The database's clock, in milliseconds."""
    async with rig.database.read() as tx:
        return tx.now


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
