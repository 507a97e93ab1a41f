"""The real dispatcher against the lab's Discord: rate limits, failures, time-outs, lost answers; and its processes killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from flows.clients.notifier import DiscordNotifier
from flows.domain.event import Channel, Event, EventKind, Route, Severity
from flows.report.dispatch import Dispatcher
from flows.state import outbox
from flows.state.database import Database
from tests.support.controller import Controller
from tests.support.fleet import World, process_env

pytestmark = pytest.mark.timeout(120)
PAGE = Route(Channel.CRITICAL, True, Severity.CRITICAL)
KINDS = tuple(EventKind)


def arrived(world: World, prefix: str) -> Counter[str]:
    """How often each key reached the channel, by the footers."""
    state = world.control("GET", "/state")
    assert isinstance(state, dict)
    words = [word.strip("`*_()[]") for m in state["parts"]["discord"]["channels"]["alerts-critical"] for word in m["content"].split()]
    return Counter(word for word in words if word.startswith(prefix))


async def put(database: Database, prefix: str, number: int) -> set[str]:
    """Of different kinds, so that they are not folded into one."""
    keys = {f"{prefix}-{n}" for n in range(number)}
    async with database.write() as tx:
        await outbox.put_all(tx, [(Event(KINDS[n % len(KINDS)], f"{prefix}-{n}", "what"), PAGE) for n in range(number)])
    return keys


async def waiting(database: Database) -> int:
    async with database.read() as tx:
        return (await outbox.stats(tx)).waiting


@contextlib.asynccontextmanager
async def dispatcher(run: Controller) -> AsyncIterator[Dispatcher]:
    notify = run.deps.settings.notify.model_copy(update={"timeout_s": 0.5, "drain_s": 0.05})
    settings, notifier = run.deps.settings.model_copy(update={"notify": notify}), DiscordNotifier(notify)
    try:
        yield Dispatcher(run.deps.database, notifier, settings, f"host:1:{random.getrandbits(32):08x}")
    finally:
        await notifier.close()


async def drained(run: Controller, post: Dispatcher, limit_s: float = 45.0) -> None:
    async with asyncio.timeout(limit_s):
        while await waiting(run.deps.database):
            await post.drain()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("mode", "options", "repeats"),
    [
        ("error", {"status": 429}, False),
        ("error", {"status": 500}, False),
        ("error", {"status": 502}, False),
        ("unreachable", {}, False),
        ("hang", {"seconds": 1.0}, False),
        ("lose_answer", {}, True),
        ("slow", {"seconds": 1.0}, False),
    ],
)
async def test_whatever_discord_does_each_alert_arrives(
    run: Controller, faults: Callable[..., None], mode: str, options: dict[str, object], repeats: bool
) -> None:
    """Before its effect (refused, no connection, given up before it was taken) once; after it, the answer lost, once more under the same key."""
    prefix = f"{mode}{options.get('status', '')}{run.deps.holder[-4:]}"
    keys = await put(run.deps.database, prefix, 3)
    faults("discord", mode, count=2, **options)
    async with dispatcher(run) as post:
        await drained(run, post)
    found = arrived(run.world, prefix)
    assert set(found) == keys
    assert max(found.values()) <= (3 if repeats else 1), found
    assert repeats == (sum(found.values()) > len(keys)), found


async def test_dispatchers_that_are_killed_again_and_again_lose_nothing(run: Controller, faults: Callable[..., None]) -> None:
    """Two processes of ``zlh dispatch``, the first killed by -9 in the middle of what it claimed; the second takes up the rest."""
    env = process_env(run.world) | {"ZLH_NOTIFY__CLAIM_S": "3", "ZLH_NOTIFY__DRAIN_S": "0.1", "ZLH_NOTIFY__TIMEOUT_S": "1"}
    prefix = f"killed{run.deps.holder[-4:]}"
    faults("discord", "slow", seconds=0.15)
    keys = await put(run.deps.database, prefix, 8)
    for killed in (True, False):
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "flows.cli", "dispatch", env=env, stdout=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(60):
                before = sum(arrived(run.world, prefix).values())
                if killed:  # dies with some of its claim delivered, and some not
                    while sum(arrived(run.world, prefix).values()) < before + 2:
                        await asyncio.sleep(0.02)
                else:
                    while await waiting(run.deps.database):
                        await asyncio.sleep(0.1)
        finally:
            process.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
            await process.wait()
    found = arrived(run.world, prefix)
    assert set(found) == keys
    assert sum(found.values()) <= len(keys) + 1, "no more than the one that was in its hands"
