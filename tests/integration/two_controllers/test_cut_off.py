"""Redis and the database, cut off from one or from both, flushed, killed and started again."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.disturbance import all_go_on, all_healed_once, drifted, healed_within_one_expiry, held
from tests.support.loops import ABANDONED
from tests.support.rig import HEALED_S, Rig
from tests.support.servers import MariaDB, Redis

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="package")]


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
        await all_healed_once(rig)
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
        await all_healed_once(rig)
    finally:
        flushing.cancel()
        await asyncio.wait({flushing})


@pytest.mark.parametrize("kind", ["register", *(pytest.param(k, marks=pytest.mark.soak) for k in ("publish", "deregister", "withdraw", "stop"))])
@pytest.mark.parametrize("way", ["kill", pytest.param("stop", marks=pytest.mark.soak)])
async def test_the_database_is_restarted_while_a_call_is_on_its_way(rig: Rig, mariadb: MariaDB, kind: str, way: str) -> None:
    """Nobody stands still: the call may still come to its end, or its holder ends in time."""
    async with drifted(rig, kind) as [watch]:
        await held(rig, watch.drift)
        (mariadb.kill if way == "kill" else mariadb.stop)()
        mariadb.start()
        await rig.lab("DELETE", "/faults")
        await all_go_on(rig)
        await rig.until(f"{kind} healed", watch.healed, HEALED_S)
        await all_go_on(rig)
        await watch.one_effect()


@pytest.mark.parametrize("kind", ["publish", *(pytest.param(k, marks=pytest.mark.soak) for k in ("register", "deregister", "withdraw", "stop"))])
async def test_one_is_cut_from_the_database_while_its_call_is_on_its_way(rig: Rig, kind: str) -> None:
    """It can renew nothing: it ends before its lease does, and the other one, with a newer token, comes before the late call."""
    a, b = rig.a, rig.b
    async with drifted(rig, kind) as [watch]:
        mark, told = len(b.events), len(a.events)
        await held(rig, watch.drift, a)
        await rig.wires["a.database"].cut()
        at = time.monotonic()
        await rig.go(b)
        await rig.until(f"{kind} healed by the other", watch.healed, HEALED_S)
        healed_within_one_expiry(b, watch.drift, at, mark)
        assert (await a.over(told)).get("exit") == ABANDONED
        await rig.lab("DELETE", "/faults")
        await rig.until("the late call is refused", watch.refused, HEALED_S)
        await rig.wires["a.database"].mend()
        await all_go_on(rig)
        await watch.one_effect()
