"""One lab for a module, one bare controller for a test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.support import fleet
from tests.support.controller import Controller, controller

_names = itertools.count(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleet.World]:
    made = asyncio.run(fleet.make(tmp_path_factory.mktemp("fleet")))
    yield made
    made.close()


@pytest.fixture
async def run(world: fleet.World) -> AsyncIterator[Controller]:
    async with controller(world) as made:
        yield made


@pytest.fixture
def name() -> str:
    return f"srv{next(_names)}"


@pytest.fixture
def faults(world: fleet.World) -> Iterator[Callable[..., None]]:
    """Arms faults; all are gone after the test."""

    def arm(target: str, mode: str, **options: object) -> None:
        world.control("POST", "/faults", target=target, mode=mode, **options)

    yield arm
    world.control("DELETE", "/faults")
