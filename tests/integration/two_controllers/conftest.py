"""The world that most rows share, and the servers below it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support import rig as rigs
from tests.support.databases import mariadb, redis_server
from tests.support.rig import Rig
from tests.support.servers import MariaDB, Redis

__all__ = ["mariadb", "redis_server"]


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def rig(tmp_path_factory: pytest.TempPathFactory, mariadb: MariaDB, redis_server: Redis) -> AsyncIterator[Rig]:
    async with rigs.rig(tmp_path_factory.mktemp("two"), mariadb, redis_server) as made:
        yield made
