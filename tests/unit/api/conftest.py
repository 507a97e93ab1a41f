"""One house per test; see :mod:`tests.support.house`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flows.settings import Settings
from flows.state.database import Database
from tests.support.house import House, build, new_database, new_settings


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await new_database(tmp_path)
    yield database
    await database.close()


@pytest.fixture
def settings() -> Settings:
    return new_settings()


@pytest.fixture
async def house(database: Database, settings: Settings) -> AsyncIterator[House]:
    async with build(database, settings) as built:
        yield built
