"""A fresh database for each test, and rows to start from.

``db`` runs on the database's own clock, ``timed`` on the virtual ``clock``; both on a new SQLite file, or on the server
named by ``--database-url`` or ``ZLH_TEST_DATABASE_URL``, which is emptied before each test. ``open_db`` opens the same
database once more, as a second process would. ``make`` inserts customers, nodes, servers and operations.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from flows.domain.node import Node
from flows.domain.operation import Operation, OperationKind, Queue
from flows.domain.server import ContainerType, Desired, Edge, Server, ServerState
from flows.state import customers, migrate, nodes, operations, servers
from flows.state.database import Database, Tx
from flows.state.ids import new_id
from tests.support.databases import empty, seeds


@dataclass
class Clock:
    """Database time in ms that passes only when told."""

    now: int = 1_760_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, ms: int) -> None:
        self.now += ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def _server_url(request: pytest.FixtureRequest) -> str | None:
    return request.config.getoption("--database-url", default=None) or os.environ.get("ZLH_TEST_DATABASE_URL")


@pytest.fixture(scope="session")
def _template(_server_url: str | None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Migrates once: a SQLite file to copy, or the server's database with the seeds to put back."""
    if _server_url is None:
        path = tmp_path_factory.mktemp("schema") / "zlh.db"
        migrate.upgrade_sync(f"sqlite+aiosqlite:///{path}")
        return {"path": path}
    asyncio.run(_from_nothing(_server_url))
    return {"url": _server_url, "seeds": asyncio.run(seeds(_server_url))}


async def _from_nothing(url: str) -> None:
    """What an earlier run left there has seeds of that run's day."""
    await migrate.downgrade(url)
    await migrate.upgrade(url)


@pytest.fixture
async def db_url(_template: dict[str, Any], tmp_path: Path) -> str:
    """A migrated database with nothing in it but what the migration seeds."""
    if "path" in _template:
        shutil.copy(_template["path"], tmp_path / "zlh.db")
        return f"sqlite+aiosqlite:///{tmp_path / 'zlh.db'}"
    await empty(_template["url"], _template["seeds"])
    return str(_template["url"])


@pytest.fixture
def fresh(_template: dict[str, Any], tmp_path: Path) -> Callable[[], str]:
    """A new, migrated database at each call, for tests that make many examples (and run no event loop of their own)."""
    numbers = itertools.count()

    def new() -> str:
        if "path" not in _template:
            asyncio.run(empty(_template["url"], _template["seeds"]))
            return str(_template["url"])
        path = tmp_path / f"example-{next(numbers)}.db"
        shutil.copy(_template["path"], path)
        return f"sqlite+aiosqlite:///{path}"

    return new


@pytest.fixture
async def open_db(db_url: str) -> AsyncIterator[Callable[..., Database]]:
    opened: list[Database] = []

    def open_(**options: Any) -> Database:
        opened.append(Database(db_url, **options))
        return opened[-1]

    yield open_
    for database in opened:
        await database.close()


@pytest.fixture
def db(open_db: Callable[..., Database]) -> Database:
    """By the database's own clock."""
    return open_db()


@pytest.fixture
def timed(open_db: Callable[..., Database], clock: Clock) -> Database:
    """By the virtual ``clock``."""
    return open_db(clock=clock)


@dataclass
class Make:
    """Rows with sensible values; each call makes another one. All take an open transaction."""

    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def customer(self, tx: Tx, *, plan: str = "basic") -> customers.Customer:
        return await customers.add(tx, f"customer-{next(self.numbers)}", plan)

    async def node(self, tx: Tx, name: str = "pve1", **changes: Any) -> Node:
        node = replace(Node(name, 65_536, 1_000, 16, "local-lvm", "vmbr0", {"fabric": 9000, "node": 9001}), **changes)
        await nodes.put(tx, node)
        return node

    async def server(self, tx: Tx, *, customer_id: str | None = None, **changes: Any) -> Server:
        """``creating`` unless told otherwise; makes the customer and node that it needs."""
        number = next(self.numbers)
        if customer_id is None:
            customer_id = (await self.customer(tx)).id
        host = changes.get("node", "pve1")
        if host not in {n.name for n in await nodes.list_(tx)}:
            await self.node(tx, host)
        server = Server(
            id=new_id(), customer_id=customer_id, name=f"server-{number}", ctype=ContainerType.GAME, flavor="fabric", version="1.21.1",
            memory_mb=4096, cores=2, disk_gb=20, node=host, storage="local-lvm", bridge="vmbr0", template_vmid=9000,
            vmid=10_000 + number, address=f"10.20.{number // 250}.{number % 250 + 1}", state=ServerState.CREATING,
            desired=Desired.RUNNING, desired_by="customer", edge=Edge.OPEN, token_version=1, created_at=tx.now,
        )  # fmt: skip
        return await servers.create(tx, replace(server, **changes))

    async def operation(self, tx: Tx, server: Server | None = None, **changes: Any) -> Operation:
        wanted: dict[str, Any] = {
            "server": server or await self.server(tx),
            "kind": OperationKind.PROVISION,
            "queue": Queue.PROVISIONING,
            "actor": "customer:test",
            "params": {},
            "deadline_ms": 3_600_000,
        }
        return await operations.create(tx, **(wanted | changes))


@pytest.fixture
def make() -> Make:
    return Make()
