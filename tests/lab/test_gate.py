"""The gate on a real Redis."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from flows.clients.gate import RedisGate
from flows.settings import RedisSettings

pytestmark = [pytest.mark.lab, pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("redis")
    socket = Path(directory, "redis.sock")
    argv = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", str(directory), "--save", "", "--requirepass", "a-password"]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    url = f"unix://:a-password@{socket}"
    end = time.monotonic() + 10
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < end, "redis-server did not come up"
                time.sleep(0.05)
    yield url
    server.terminate()
    server.wait(10)


@pytest.fixture
async def gate(url: str) -> AsyncIterator[RedisGate]:
    gate = RedisGate(RedisSettings(url=SecretStr(url)))
    with redis.Redis.from_url(url) as client:
        client.flushall()
    yield gate
    await gate.close()


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


async def test_a_flushed_redis_forgets(gate: RedisGate, url: str) -> None:
    """Why the row alone decides."""
    await gate.enter("a", 30)
    with redis.Redis.from_url(url) as client:
        client.flushall()
    assert await gate.enter("b", 30) is True


async def test_a_refused_password_is_no_answer(url: str) -> None:
    gate = RedisGate(RedisSettings(url=SecretStr(url.replace("a-password", "wrong"))))
    assert await gate.enter("a", 30) is None
    await gate.close()
