"""The gate on a real Redis, which may be restarted, emptied, slow, read-only or somebody else's: it stays a hint, and the row decides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from flows.clients.gate import RedisGate
from flows.settings import RedisSettings
from flows.state import epochs, migrate
from flows.state.database import Database
from tests.support.databases import redis_server
from tests.support.servers import Redis

__all__ = ["redis_server"]

pytestmark = pytest.mark.lab
TIMEOUT_S = 3.0
KEY = "zlh:gate:sweep"


@pytest.fixture
def raw(redis_server: Redis) -> Iterator[redis.Redis]:
    """A person's own connection."""
    with redis_server.client() as client:
        client.replicaof("NO", "ONE")
        client.flushall()
        yield client


@pytest.fixture
async def gate(redis_server: Redis, raw: redis.Redis) -> AsyncIterator[RedisGate]:
    gate = gate_to(redis_server.url)
    yield gate
    await gate.close()


def gate_to(url: str) -> RedisGate:
    return RedisGate(RedisSettings(url=SecretStr(url), timeout_s=TIMEOUT_S))


async def test_one_is_in(gate: RedisGate) -> None:
    assert await asyncio.gather(*(gate.enter(f"h{n}", 30) for n in range(20))) in [[n == winner for n in range(20)] for winner in range(20)]


async def test_entering_again_is_entering(gate: RedisGate) -> None:
    assert await gate.enter("a", 30) is True
    assert await gate.enter("a", 30) is True
    assert await gate.enter("b", 30) is False


async def test_only_the_holder_renews_and_leaves(gate: RedisGate) -> None:
    await gate.enter("a", 30)
    assert await gate.renew("b", 30) is False
    await gate.leave("b")
    assert await gate.enter("b", 30) is False
    assert await gate.renew("a", 30) is True
    await gate.leave("a")
    await gate.leave("a")
    assert await gate.enter("b", 30) is True


async def test_it_expires_and_an_old_holder_harms_nobody(gate: RedisGate) -> None:
    assert await gate.enter("a", 0.05) is True
    await asyncio.sleep(0.1)
    assert await gate.renew("a", 30) is False
    assert await gate.enter("b", 30) is True
    await gate.leave("a")
    assert await gate.enter("c", 30) is False


async def test_a_flushed_redis_forgets(gate: RedisGate, raw: redis.Redis) -> None:
    """Why the row alone decides."""
    await gate.enter("a", 30)
    raw.flushall()
    assert await gate.enter("b", 30) is True
    assert await gate.renew("a", 30) is False
    await gate.leave("a")
    assert raw.get(KEY) == b"b"


async def test_a_restarted_redis_serves_the_same_gate(gate: RedisGate, redis_server: Redis) -> None:
    await gate.enter("a", 30)
    redis_server.kill()
    try:
        assert await gate.enter("a", 30) is None
    finally:
        redis_server.start()
    assert await gate.enter("b", 30) is True  # it kept nothing


async def test_an_unreachable_redis_is_no_answer_and_is_told_once(gate: RedisGate, redis_server: Redis, caplog: pytest.LogCaptureFixture) -> None:
    redis_server.stop()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert await gate.enter("a", 30) is None
                assert await gate.renew("a", 30) is None
                await gate.leave("a")
    finally:
        redis_server.start()
    assert [r.message for r in caplog.records] == ["the gate is not used: redis: ConnectionError; check ZLH_REDIS__URL"]


async def test_a_redis_that_stands_still_costs_one_time_out_and_its_late_answers_confuse_nobody(gate: RedisGate, redis_server: Redis) -> None:
    assert await gate.enter("a", 30) is True
    redis_server.freeze()
    try:
        begun = time.monotonic()
        assert await gate.enter("b", 30) is None
        assert time.monotonic() - begun < TIMEOUT_S + 2
    finally:
        redis_server.thaw()
    assert [await gate.renew("a", 30), await gate.renew("b", 30), await gate.enter("b", 30)] == [True, False, False]


async def test_a_read_only_replica_is_no_answer(gate: RedisGate, raw: redis.Redis) -> None:
    raw.replicaof("127.0.0.1", "1")
    assert await gate.enter("a", 30) is None


async def test_a_refused_password_is_no_answer_and_is_not_quoted(redis_server: Redis, raw: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    gate = gate_to(redis_server.url.replace("of-a-test", "a-wrong-one"))
    with caplog.at_level(logging.DEBUG):
        assert await gate.enter("a", 30) is None
    assert "a-wrong-one" not in caplog.text
    await gate.close()


async def test_a_key_of_another_type_is_no_answer(gate: RedisGate, raw: redis.Redis) -> None:
    raw.rpush(KEY, "x")
    assert await gate.enter("a", 30) is None
    await gate.leave("a")
    assert raw.type(KEY) == b"list"


@pytest.mark.parametrize("for_s", [None, 86_400])
async def test_a_key_that_does_not_expire_keeps_nobody_out(
    gate: RedisGate, raw: redis.Redis, for_s: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Not one of ours: no sweep would ever begin again."""
    raw.set(KEY, "a person", ex=for_s)
    assert await gate.enter("a", 30) is None
    assert f"{KEY} is held by something that is no sweep: delete it" in caplog.text
    assert raw.get(KEY) == b"a person"


async def test_whatever_the_gate_says_one_sweeps(gate: RedisGate, raw: redis.Redis, tmp_path: Path) -> None:
    """Two controllers pass an emptied gate; the row lets one begin, and the first one is not disturbed."""
    url = f"sqlite+aiosqlite:///{tmp_path}/zlh.db"
    await migrate.upgrade(url)
    db = Database(url)
    began: list[tuple[str, int]] = []
    for holder in ("a", "b", "c"):
        assert await gate.enter(holder, 30) is True
        epoch = await epochs.begin(db, holder, 30_000)
        began += [] if epoch is None else [(holder, epoch)]
        raw.flushall()
    assert [holder for holder, _ in began] == ["a"]
    async with db.write(epoch=began[0][1]):
        pass
    await db.close()
