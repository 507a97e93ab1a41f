"""The gate where there is none, or none that answers; tests/lab/test_gate.py asks a real Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from flows.clients.gate import NoGate, RedisGate
from flows.errors import MisconfiguredSetting
from flows.settings import RedisSettings


async def test_no_gate_leaves_it_to_the_row() -> None:
    gate = NoGate()
    assert await gate.enter("a", 30) is None
    assert await gate.renew("a", 30) is None
    await gate.leave("a")
    await gate.close()


async def test_an_unreachable_redis_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    gate = RedisGate(RedisSettings(url=SecretStr("redis://:geheim@127.0.0.1:1/0"), timeout_s=0.5))
    with caplog.at_level(logging.DEBUG):
        assert await gate.enter("a", 30) is None
        assert await gate.renew("a", 30) is None
        await gate.leave("a")
    await gate.close()
    assert caplog.text.count("the gate is not used") == 1
    assert "geheim" not in caplog.text


@pytest.fixture
async def silent() -> AsyncIterator[int]:
    """A peer that accepts and never answers."""
    release = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    release.set()
    server.close()
    await server.wait_closed()


async def test_a_silent_redis_costs_one_time_out(silent: int) -> None:
    gate = RedisGate(RedisSettings(url=SecretStr(f"redis://127.0.0.1:{silent}/0"), timeout_s=0.3))
    begin = time.monotonic()
    assert await gate.enter("a", 30) is None
    assert time.monotonic() - begin < 2
    await gate.close()


def test_a_url_that_is_none_names_its_setting() -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_REDIS__URL") as caught:
        RedisGate(RedisSettings(url=SecretStr("http://:geheim@host")))
    assert "geheim" not in str(caught.value)
