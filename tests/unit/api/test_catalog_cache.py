"""The catalog in front of the front door: asked seldom, never waited for longer than needed, and unknown is never empty."""

from __future__ import annotations

import asyncio

import pytest

from flows.api.catalog_cache import CatalogCache
from flows.domain.ports import Artifact
from flows.errors import BadAnswer, Unreachable
from tests.support.house import FakeArtifacts, artifact


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Hanging(FakeArtifacts):
    """An artifact server that accepts and does not answer until told."""

    gate: asyncio.Event | None = None

    async def artifacts(self) -> list[Artifact]:
        if self.gate is not None:
            await self.gate.wait()
        return await super().artifacts()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog() -> Hanging:
    return Hanging([artifact("jar", "fabric", "1"), artifact("jar", "fabric", "2", "candidate"), artifact("jar", "paper", "1", "withdrawn")])


async def test_asked_once_by_many_and_again_when_old(catalog: Hanging, clock: Clock) -> None:
    cache = CatalogCache(catalog, 5.0, 0.5, clock)
    answers = await asyncio.gather(*(cache.promoted() for _ in range(20)))
    assert (catalog.asked, {a.stale for a in answers}) == (1, {False})
    clock.now += 4.9
    await cache.promoted()
    assert catalog.asked == 1
    clock.now += 0.2
    await cache.promoted()
    assert catalog.asked == 2


async def test_only_promoted_entries_count(catalog: Hanging, clock: Clock) -> None:
    promoted = await CatalogCache(catalog, 5.0, 0.5, clock).promoted()
    assert (promoted.names("jar"), promoted.versions("jar", "fabric")) == ({"fabric"}, {"1"})


async def test_without_any_answer_the_error_is_said_and_not_asked_for_again_at_once(catalog: Hanging, clock: Clock) -> None:
    catalog.down = True
    cache = CatalogCache(catalog, 5.0, 0.5, clock)
    for _ in range(3):
        with pytest.raises(Unreachable):
            await cache.promoted()
    assert catalog.asked == 1
    catalog.down = False
    clock.now += 5.1
    assert (await cache.promoted()).artifacts


async def test_an_earlier_answer_serves_while_the_server_is_down(catalog: Hanging, clock: Clock) -> None:
    cache = CatalogCache(catalog, 5.0, 0.5, clock)
    await cache.promoted()
    catalog.down = True
    clock.now += 5.1
    assert ((await cache.promoted()).stale, (await cache.promoted()).names("jar")) == (True, {"fabric"})
    catalog.down = False
    clock.now += 5.1
    assert (await cache.promoted()).stale is False


async def test_a_server_that_hangs_holds_nobody_up_once_there_is_an_answer(catalog: Hanging, clock: Clock) -> None:
    cache = CatalogCache(catalog, 5.0, 0.01, clock)
    await cache.promoted()
    catalog.gate = asyncio.Event()
    clock.now += 5.1
    answers = await asyncio.wait_for(asyncio.gather(*(cache.promoted() for _ in range(5))), 5)
    assert ({a.stale for a in answers}, catalog.asked) == ({True}, 1)
    catalog.gate.set()
    await asyncio.wait_for(asyncio.shield(cache._asking), 5)  # type: ignore[arg-type]  # it is asking
    assert ((await cache.promoted()).stale, catalog.asked) == (False, 2)


async def test_nonsense_is_an_error_too(clock: Clock) -> None:
    class Nonsense(FakeArtifacts):
        async def artifacts(self) -> list[Artifact]:
            raise BadAnswer("catalog", why="malformed")

    with pytest.raises(BadAnswer):
        await CatalogCache(Nonsense(), 5.0, 0.5, clock).promoted()


async def test_no_server_is_no_empty_catalog() -> None:
    with pytest.raises(Unreachable):
        await CatalogCache(None).promoted()
