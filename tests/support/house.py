"""The front door with everything real behind it: a SQLite database, both applications over an ASGI transport, customers with tokens."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from sqlalchemy import func, select

from flows.api.app import control_app, public_app
from flows.api.deps import ApiDeps
from flows.bootstrap import router
from flows.domain.agent import Observation, WorkloadState
from flows.domain.lease import Lease
from flows.domain.node import Node
from flows.domain.operation import Direction, OperationKind, OperationState, StepName
from flows.domain.ports import Artifact
from flows.domain.server import Edge, Server, ServerState
from flows.errors import Unreachable
from flows.settings import ApiSettings, Settings
from flows.state import (
    addresses,
    attempts,
    audit,
    control,
    customers,
    journal,
    leases,
    migrate,
    nodes,
    observations,
    operations,
    servers,
    tokens,
    vmids,
)
from flows.state.customers import PlanLimits
from flows.state.database import Database

CONTROL_TOKEN = "control-token-of-the-tests"


@dataclass
class FakeArtifacts:
    """A catalog as the artifact server's client gives it; ``down`` and ``empty`` are its two ways to fail."""

    entries: list[Artifact] = field(default_factory=list)
    stale: bool = False
    down: bool = False
    asked: int = 0

    async def artifacts(self) -> list[Artifact]:
        self.asked += 1
        if self.down:
            raise Unreachable("artifact server", why="no answer, and there never was a copy")
        return list(self.entries)


def artifact(kind: str, name: str, version: str, state: str = "promoted") -> Artifact:
    return Artifact(kind, name, version, f"http://127.0.0.1/{kind}/{name}/{version}", "ab" * 32, 1000, state)


@dataclass
class Lane:
    """A customer's way in."""

    client: httpx.AsyncClient
    token: str
    customer_id: str | None

    def headers(self, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} | more

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.client.get(path, headers=self.headers(**more.pop("headers", {})), **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return await self.client.post(path, json=body, headers=self.headers(**more.pop("headers", {})), **more)

    async def delete(self, path: str) -> httpx.Response:
        return await self.client.delete(path, headers=self.headers())


@dataclass
class House:
    deps: ApiDeps
    database: Database
    catalog: FakeArtifacts
    public: httpx.AsyncClient
    control: httpx.AsyncClient
    alice: Lane
    bob: Lane
    admin: Lane
    operator: Lane  # the admin's token at the control listener

    async def count(self, table: Any) -> int:
        async with self.database.read() as tx:
            return int((await tx.execute(select(func.count()).select_from(table))).scalar_one())


def order(**changes: Any) -> dict[str, Any]:
    """A good order for a game; a field of None is left out."""
    body: dict[str, Any] = {
        "ctype": "game",
        "name": "lotus",
        "flavor": "fabric",
        "version": "1.21.1",
        "memory_mb": 4096,
        "cores": 2,
        "disk_gb": 20,
        "request_nonce": "nonce-1",
    }
    return {k: v for k, v in (body | changes).items() if v is not None}


@cache
def _template() -> bytes:
    """A migrated database, made once per process."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "zlh.db"
        migrate.upgrade_sync(f"sqlite+aiosqlite:///{path}")
        return path.read_bytes()


async def new_database(directory: Path) -> Database:
    """A migrated database of its own in ``directory``."""
    path = directory / "zlh.db"
    path.write_bytes(await asyncio.to_thread(_template))
    return Database(f"sqlite+aiosqlite:///{path}")


def new_settings(**api: Any) -> Settings:
    return Settings(api=ApiSettings(control_token=SecretStr(CONTROL_TOKEN), **api))


class build:  # noqa: N801 - reads as a verb: ``async with build(database, settings) as house``
    """The house around a database, with two customers, an admin and a node."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings = database, settings

    async def __aenter__(self) -> House:
        async with self.database.write() as tx:
            await customers.put_plan(tx, PlanLimits("basic", servers=3, memory_mb=16_384, disk_gb=100, backups=3))
            await nodes.put(tx, Node("pve1", 65_536, 1_000, 16, "local-zfs", "vmbr1", {"fabric": 9001, "debian": 9002}))
            alice, bob = await customers.add(tx, "Alice", "basic"), await customers.add(tx, "Bob", "basic")
            plain = {}
            for customer in (alice, bob):
                plain[customer.name] = (await tokens.create(tx, customer_id=customer.id, role="customer", label="test"))[1]
            plain["admin"] = (await tokens.create(tx, customer_id=None, role="admin", label="root"))[1]
        catalog = FakeArtifacts(
            [
                artifact("jar", "fabric", "1.21.1"),
                artifact("jar", "fabric", "1.20.1", "withdrawn"),
                artifact("runtime", "python", "3.12.4"),
                artifact("runtime", "node", "22.1.0", "candidate"),
                artifact("runtime", "go", "1.21.0", "withdrawn"),
                artifact("runtime", "go", "1.22.3"),
            ]
        )
        deps = ApiDeps(self.database, self.settings, router(self.settings), catalog)
        self.clients = [
            httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test", timeout=30)
            for app in (public_app(deps), control_app(deps))
        ]
        public, control = self.clients
        return House(
            deps,
            self.database,
            catalog,
            public,
            control,
            Lane(public, plain["Alice"], alice.id),
            Lane(public, plain["Bob"], bob.id),
            Lane(public, plain["admin"], None),
            Lane(control, plain["admin"], None),
        )

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            await client.aclose()


async def ordered(lane: Lane, **changes: Any) -> tuple[str, str]:
    """Orders a server; returns its id and the operation's."""
    answer = await lane.post("/api/servers/create", order(**changes))
    assert answer.status_code == 202, answer.text
    operation = answer.json()["operation"]
    return operation["server_id"], operation["id"]


async def claimed(house: House, operation_id: str) -> Lease:
    """A run claims the newest attempt, as an executor would."""
    async with house.database.write() as tx:
        operation = await operations.get(tx, operation_id)
        assert operation is not None
        return (await attempts.claim_run(tx, operation_id, operation.attempt, await control.generation(tx), "run", 60_000))[1]


async def finished(house: House, operation_id: str, *, ready: bool = True) -> None:
    """Carries an operation to its good end, in short."""
    lease = await claimed(house, operation_id)
    async with house.database.write() as tx:
        operation = await operations.get(tx, operation_id)
        assert operation is not None
        server_id = operation.server_id
        if operation.kind is OperationKind.PROVISION:
            await servers.set_state(tx, server_id, ServerState.ACTIVE, "run")
        if operation.kind is OperationKind.DELETE:
            await servers.mark_deleted(tx, server_id, "run")
        elif operation.kind is OperationKind.STOP:
            await servers.set_edge(tx, server_id, Edge.WITHDRAWN)
            await observations.upsert(tx, [Observation(server_id, tx.now, True, False, WorkloadState.STOPPED)])
        else:
            await servers.set_edge(tx, server_id, Edge.OPEN)
            await observations.upsert(tx, [Observation(server_id, tx.now, True, ready, WorkloadState.RUNNING)])
        await operations.set_state(tx, operation_id, OperationState.SUCCEEDED)
        await attempts.end(tx, operation_id, operation.attempt, "succeeded")
        await leases.release(tx, server_id, lease.token)


async def failed(house: House, operation_id: str) -> None:
    """Carries an operation to a clean failure, in short: a creation is undone and everything of it released."""
    lease = await claimed(house, operation_id)
    async with house.database.write() as tx:
        operation = await operations.get(tx, operation_id)
        assert operation is not None
        server = await servers.get(tx, operation.server_id)
        assert server is not None
        await operations.set_step(tx, operation_id, StepName.CREATE_CONTAINER, tx.now + 1000)
        for step, direction in ((StepName.CREATE_CONTAINER, Direction.DO), (StepName.CREATE_CONTAINER, Direction.UNDO)):
            await journal.begin(tx, operation_id, step, direction, operation.attempt, tx.now + 1000)
            await journal.done(tx, operation_id, step, direction)
        error = {"type": "TaskFailed", "what": "clone", "why": "pve1: no space left", "remedy": "free some"}
        if operation.kind is OperationKind.PROVISION:
            await operations.set_state(tx, operation_id, OperationState.COMPENSATING, error=error)
            await vmids.quarantine(tx, server.vmid, tx.now + 86_400_000)
            await addresses.quarantine(tx, server.address, tx.now + 86_400_000)
            await servers.mark_failed(tx, server.id, "run")
        await operations.set_state(tx, operation_id, OperationState.FAILED, error=error)
        await attempts.end(tx, operation_id, operation.attempt, "failed")
        await leases.release(tx, server.id, lease.token)


async def active(house: House, lane: Lane, **changes: Any) -> str:
    """A server that runs."""
    server_id, operation_id = await ordered(lane, **changes)
    await finished(house, operation_id)
    return server_id


async def server_of(house: House, server_id: str) -> Server:
    async with house.database.read() as tx:
        server = await servers.get(tx, server_id)
    assert server is not None
    return server


async def observed(house: House, server_id: str, *, age_s: float = 0.0, **values: Any) -> None:
    """What a sweep wrote ``age_s`` seconds ago."""
    async with house.database.write() as tx:
        seen: dict[str, Any] = {"reachable": True, "ready": True, "state": WorkloadState.RUNNING} | values
        await observations.upsert(tx, [Observation(server_id, tx.now - int(age_s * 1000), **seen)])


async def audited(house: House) -> list[tuple[str, str]]:
    """``(actor, action)`` of the whole audit log, oldest first."""
    async with house.database.read() as tx:
        return [(line.actor, line.action) for line in reversed(await audit.list_(tx))]
