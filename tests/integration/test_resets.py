"""``zlh redis reset`` on a real Redis, with the simulated fleet behind the sweep that proves it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from flows.act import resets
from flows.clients.gate import RedisGate
from flows.clients.redis_server import RedisServer
from flows.domain.lease import LeaseKind
from flows.errors import BadInput, Busy, Unauthorized, Unreachable
from flows.settings import RedisSettings
from flows.state import audit, leases
from tests.support.controller import Controller
from tests.support.servers import Redis, running

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed; playbooks/lab.yml installs it")


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with running(Redis()) as started:
        assert isinstance(started, Redis)
        yield started


@pytest.fixture
def settings(server: Redis) -> Iterator[RedisSettings]:
    with server.client() as client:
        client.flushall()
    yield RedisSettings(url=SecretStr(server.url), prefix="zlh:[a]*:")
    if not server.running:
        server.start()


async def test_only_our_own_keys_are_removed(run: Controller, server: Redis, settings: RedisSettings) -> None:
    """A prefix is no pattern: ``zlh:[a]*:`` removes nothing of ``zlh:a:``."""
    redis = RedisServer(settings)
    with server.client() as client:
        client.mset({"zlh:[a]*:gate:sweep": "dead", "zlh:[a]*:x": "1", "zlh:a:x": "1", "other": "1"} | {f"zlh:[a]*:{n}": "1" for n in range(1200)})
        assert await resets.reset_redis(run.deps.database, redis, "cli:test", everything=False, force=False) == 1202
        assert sorted(client.keys()) == [b"other", b"zlh:a:x"]
        assert await resets.reset_redis(run.deps.database, redis, "cli:test", everything=True, force=False) == 2
        assert client.keys() == []
    async with run.deps.database.read() as tx:
        assert [line.action for line in await audit.list_(tx, limit=2)] == ["redis.reset", "redis.reset"]
    await redis.close()


async def test_the_next_sweep_is_proven_clean(run: Controller, server: Redis, settings: RedisSettings) -> None:
    """A gate that somebody left closed for an hour kept every sweep out; after the reset one gets in."""
    redis, gate = RedisServer(settings), RedisGate(settings)
    with server.client() as client:
        client.set(f"{settings.prefix}gate:sweep", "dead", px=20_000)
    assert (await run_sweep(run, gate)).unlooked, "somebody else is in"
    assert await resets.reset_redis(run.deps.database, redis, "cli:test", everything=False, force=False) == 1
    report = await run_sweep(run, gate)
    assert report.clean, report
    assert "clean" in report.looked[0]
    await redis.close()
    await gate.close()


async def run_sweep(run: Controller, gate: Any) -> Any:
    short = run.deps.settings.model_copy(update={"watchdog": run.deps.settings.watchdog.model_copy(update={"intervals": 1})})
    return await resets.prove_sweep(replace(run.deps, settings=short), gate, run.log.append, gated=True)


async def test_under_a_live_lease_it_is_refused_unless_forced(run: Controller, settings: RedisSettings) -> None:
    redis = RedisServer(settings)
    async with run.deps.database.write() as tx:
        lease = await leases.take(tx, "dns:somewhere", LeaseKind.REPAIR, "host:1:0123abcd", 60_000)
    with pytest.raises(Busy, match="repair of dns:somewhere"):
        await resets.reset_redis(run.deps.database, redis, "cli:test", everything=False, force=False)
    assert await resets.reset_redis(run.deps.database, redis, "cli:test", everything=False, force=True) == 0
    async with run.deps.database.write() as tx:
        await leases.release(tx, lease.subject, lease.token)
    await redis.close()


async def test_a_server_that_is_gone_or_refuses_is_said_in_words(server: Redis, settings: RedisSettings) -> None:
    wrong = RedisServer(settings.model_copy(update={"url": SecretStr(server.url.replace(":of-a-test@", ":wrong@"))}))
    with pytest.raises(Unauthorized, match="ZLH_REDIS__URL") as refused:
        await wrong.forget()
    assert "wrong" not in str(refused.value).replace("wrong password", "")
    await wrong.close()
    server.kill()
    gone = RedisServer(settings)
    with pytest.raises(Unreachable):
        await gone.forget()
    with pytest.raises(BadInput, match="PREFIX"):
        await RedisServer(settings.model_copy(update={"prefix": ""})).keys()
    await gone.close()


async def test_clients_are_listed_without_the_one_that_asks(server: Redis, settings: RedisSettings) -> None:
    redis = RedisServer(settings)
    with server.client() as other:
        other.client_setname("stranger")
        listed = await redis.clients()
        assert ["stranger" in peer.name for peer in listed] == [True]
        assert listed[0].address == "127.0.0.1"
    async with asyncio.timeout(10):
        while await redis.clients():
            await asyncio.sleep(0.05)
    await redis.close()
