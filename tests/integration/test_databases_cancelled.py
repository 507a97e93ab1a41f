"""A cancellation that strikes anywhere within a transaction ends its task: whoever retries what failed would else never end."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from sqlalchemy import text

from flows.errors import Temporary
from flows.state.database import Database
from tests.support.databases import ALL, kind, mariadb, postgresql, server, url
from tests.support.databases import _migrated as _migrated

__all__ = ["kind", "mariadb", "postgresql", "server", "url"]

pytestmark = [pytest.mark.timeout(180), pytest.mark.parametrize("kind", ALL, indirect=True)]


@pytest.mark.parametrize("writing", [False, True])
async def test_a_task_that_tries_again_can_be_cancelled_at_any_moment(url: str, writing: bool) -> None:
    chance = random.Random(7)
    db = Database(url)

    async def again_and_again() -> None:
        while True:
            with contextlib.suppress(Temporary):
                async with db.write() if writing else db.read() as tx:
                    await tx.execute(text("SELECT 1"))

    try:
        for _ in range(150):
            task = asyncio.create_task(again_and_again())
            await asyncio.sleep(chance.uniform(0.0, 0.02))
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=5.0)
            assert done and task.cancelled()
        for _ in range(150):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.001, 0.02)):
                    await again_and_again()
        async with db.read() as tx:
            assert (await tx.execute(text("SELECT 2"))).scalar_one() == 2
    finally:
        await db.close()
