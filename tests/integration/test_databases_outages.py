"""The server is stopped, killed and started again under load; its disk is full. Errors say what to do, and nothing is half-done."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from flows.decide.placement import place
from flows.domain.node import Node
from flows.errors import Temporary, Unreachable
from flows.state import customers, intake, nodes
from flows.state import tables as t
from flows.state.customers import PlanLimits
from flows.state.database import Database, Tx
from tests.support import racer
from tests.support.databases import SERVERS, kind, mariadb, postgresql, server, url
from tests.support.databases import _migrated as _migrated
from tests.support.servers import DatabaseServer

__all__ = ["kind", "mariadb", "postgresql", "server", "url"]

pytestmark = [pytest.mark.timeout(180), pytest.mark.parametrize("kind", SERVERS, indirect=True)]
WORKERS = 4


@pytest.fixture(autouse=True)
def _up(server: DatabaseServer) -> Iterator[None]:
    """Whatever a test leaves behind, the next one has a server."""
    yield
    if not server.running:
        server.start()


async def owner_of_many(db: Database) -> str:
    async with db.write() as tx:
        await customers.put_plan(tx, PlanLimits("wide", 10**4, 10**7, 10**6, 1))
        await nodes.put(tx, Node("pve1", 10**6, 10**5, 16, "local-lvm", "vmbr0", {"fabric": 9000}))
        return (await customers.add(tx, "Ada", "wide")).id


async def order(db: Database, owner: str, name: str) -> str:
    """The new server's id; a repeat finds the first one's."""

    async def create(tx: Tx) -> Any:
        return await intake.create(tx, racer.order_of(owner, name, name), place=place, ranges=racer.RANGES)

    return str((await db.apply(create)).server.id)


async def whole(db: Database) -> set[str]:
    """The servers' ids. Every server has all of its parts, and no part is without its server."""
    async with db.read() as tx:
        ids = set((await tx.execute(select(t.servers.c.id))).scalars())
        for column in (t.vmids.c.server_id, t.addresses.c.server_id, t.operations.c.server_id, t.audit.c.server_id):
            assert Counter((await tx.execute(select(column).where(column.is_not(None)))).scalars()) == dict.fromkeys(ids, 1)
        tried = Counter((await tx.execute(select(t.attempts.c.operation_id))).scalars())
        assert set(tried) == set((await tx.execute(select(t.operations.c.id))).scalars())
    return ids


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_a_restart_under_load(url: str, server: DatabaseServer, way: str) -> None:
    db = Database(url, pool_size=WORKERS)
    owner = await owner_of_many(db)
    answered: dict[str, str] = {}
    refused: list[Temporary] = []
    over = asyncio.Event()

    async def customer(who: int) -> None:
        """Orders one after the other; what got no answer is asked again, as the front door's remedy says."""
        n = 0
        while not over.is_set():
            name = f"s{who}-{n}"
            try:
                answered[name] = await order(db, owner, name)
                n += 1
            except Temporary as error:
                refused.append(error)
                await asyncio.sleep(0.05)

    async def until(count: int) -> None:
        async with asyncio.timeout(60):
            while len(answered) < count:
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as tasks:
        for who in range(WORKERS):
            tasks.create_task(customer(who))
        await until(8)
        await asyncio.to_thread(server.kill if way == "kill" else server.stop)
        failed = len(refused)
        async with asyncio.timeout(60):
            while len(refused) < failed + 2 * WORKERS:
                await asyncio.sleep(0.02)
        server.start()  # in this thread: it would die with another one
        await until(len(answered) + 8)
        over.set()
    assert {error.remedy != "" for error in refused} == {True}, refused
    ids = await whole(db)
    assert set(answered.values()) == ids
    assert len(answered) == len(ids)
    await db.close()


async def test_a_pool_whose_connections_all_died_serves_at_once(url: str, server: DatabaseServer) -> None:
    db = Database(url, pool_size=3)
    gate = asyncio.Barrier(3)

    async def use() -> None:
        async with db.read():
            await gate.wait()  # all three connections are open

    await asyncio.gather(*(use() for _ in range(3)))
    server.kill()
    server.start()
    begun = time.monotonic()
    await asyncio.gather(*(use() for _ in range(3)))
    assert time.monotonic() - begun < 20
    await db.close()


@pytest.mark.parametrize(
    ("wrong", "remedy"), [("zlh:wrong@", "docs/databases.md has the grants"), ("/zlh_none", "create the database")], ids=["password", "database"]
)
async def test_what_is_wrong_with_the_url_is_told(url: str, wrong: str, remedy: str) -> None:
    if wrong.endswith("@"):
        head, _, tail = url.partition("://")
        url = f"{head}://{wrong}{tail.partition('@')[2]}"
    else:
        url = url.rpartition("/")[0] + wrong
    db = Database(url)
    with pytest.raises(Unreachable, match=re.escape(remedy)) as told:
        async with db.read():
            pass
    assert "of-a-test" not in str(told.value)
    await db.close()
