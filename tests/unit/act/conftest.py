"""The database of ``tests/unit/state``, a world in memory, and rows that fit both."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import insert

from flows.act import executor, stepping
from flows.act.deps import Deps
from flows.domain.operation import Operation, OperationKind, OperationState, Queue
from flows.domain.server import Server, ServerState
from flows.state import control, operations, servers
from flows.state import tables as t
from flows.state.database import Database
from tests.unit.act import fakes
from tests.unit.state.conftest import Clock, Make, _server_url, _template, clock, db, db_url, make, open_db, timed

__all__ = ["Clock", "_server_url", "_template", "clock", "db", "db_url", "make", "open_db", "timed"]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "BACKOFF_S", (0.005, 0.02))


@pytest.fixture
def world() -> fakes.World:
    return fakes.World()


@dataclass
class House:
    """A database, a world, and orders about one server."""

    db: Database
    world: fakes.World
    make: Make
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    said: list[str] = field(default_factory=list)

    def deps(self, **options: Any) -> Deps:
        return fakes.deps(options.pop("database", self.db), self.world, **options)

    async def server(self, state: ServerState = ServerState.ACTIVE, **changes: Any) -> Server:
        """An active one has its container, marked as its own."""
        async with self.db.write() as tx:
            server = await self.make.server(tx, state=state, address=f"127.41.0.{next(self.numbers)}", **changes)
            row = {"vmid": server.vmid, "state": "reserved", "server_id": server.id, "since": tx.now, "until": None, "reason": ""}
            await tx.execute(insert(t.vmids), row)
        if state is not ServerState.CREATING:
            self.world.containers[server.vmid] = fakes.Container("running", tags=frozenset({f"zlh-srv-{server.id}"}))
            self.world.agent_version = "0.1.0"
        return server

    async def order(self, kind: OperationKind, server: Server | None = None, **changes: Any) -> Operation:
        if server is None:
            server = await self.server(ServerState.CREATING if kind is OperationKind.PROVISION else ServerState.ACTIVE)
        queue = Queue.PROVISIONING if kind is OperationKind.PROVISION else Queue.OPERATIONS
        async with self.db.write() as tx:
            if kind is OperationKind.DELETE:
                await servers.set_state(tx, server.id, ServerState.DELETING, "test")
            return await self.make.operation(tx, server, kind=kind, queue=queue, **changes)

    async def run(self, operation: Operation, deps: Deps | None = None, attempt: int | None = None) -> str:
        """One attempt to its end, in this process."""
        async with self.db.read() as tx:
            generation = await control.generation(tx)
        newest = (await self.operation(operation.id)).attempt
        return await executor.run(deps or self.deps(), operation.id, attempt or newest, generation, self.said.append)

    async def operation(self, operation_id: str) -> Operation:
        async with self.db.read() as tx:
            found = await operations.get(tx, operation_id)
        assert found is not None
        return found

    async def state(self, operation: Operation) -> OperationState:
        return (await self.operation(operation.id)).state

    async def present(self, server_id: str) -> Server:
        async with self.db.read() as tx:
            found = await servers.get(tx, server_id)
        assert found is not None
        return found

    async def rows(self, statement: Any) -> list[Any]:
        async with self.db.read() as tx:
            return list(await tx.execute(statement))


@pytest.fixture
def house(db: Database, world: fakes.World, make: Make) -> House:
    return House(db, world, make)


HouseFactory = Callable[[], House]
