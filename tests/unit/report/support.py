"""What the tests of ``flows.report`` share: virtual time, a notifier that does what it is told, rows to start from."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import insert

from flows.domain.node import Node
from flows.domain.operation import Operation, OperationKind, Queue
from flows.domain.ports import Delivery
from flows.domain.server import ContainerType, Desired, Edge, Server, ServerState
from flows.state import customers, nodes, operations, servers
from flows.state import tables as t
from flows.state.database import Database, Tx
from flows.state.ids import new_id


@dataclass
class Clock:
    """Milliseconds that pass only when told."""

    now: int = 1_760_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, ms: int) -> None:
        self.now += ms


class Killed(BaseException):
    """The process died here."""


@dataclass
class FakeNotifier:
    """Answers by the script, then delivers. A script entry is a Delivery, an exception, or a function of nothing that gives one.

    ``arrived`` holds what the channel really got: also where the answer was lost after it.
    """

    script: list[Any] = field(default_factory=list)
    mail_script: list[Any] = field(default_factory=list)
    mail_on: bool = False
    arrived: list[tuple[str, str, str, bool]] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    mailed: list[str] = field(default_factory=list)

    async def send(self, channel: str, text: str, *, ping: bool, key: str) -> Delivery:
        self.tried.append(key)
        answer = self.script.pop(0) if self.script else Delivery(True, 204)
        if callable(answer):  # it arrived, and then something happened to the answer
            self.arrived.append((channel, key, text, ping))
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer
        if answer.delivered:
            self.arrived.append((channel, key, text, ping))
        return answer

    async def mail(self, severity: str, subject: str, text: str, *, key: str) -> Delivery | None:
        if not self.mail_on:
            return None
        answer = self.mail_script.pop(0) if self.mail_script else Delivery(True)
        if answer.delivered:
            self.mailed.append(key)
        return answer

    @property
    def keys(self) -> list[str]:
        return [key for _, key, _, _ in self.arrived]


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Polls with a deadline."""
    ends = time.monotonic() + limit_s
    for _ in itertools.count():
        if condition():
            return
        assert time.monotonic() < ends, "did not happen in time"
        await asyncio.sleep(0.01)


async def create_schema(database: Database) -> None:
    """The tables, and the rows that the first migration seeds."""
    async with database.engine.begin() as conn:
        await conn.run_sync(t.metadata.create_all)
    async with database.write() as tx:
        await tx.execute(insert(t.control).values(name="generation", value=7, changed_at=tx.now, changed_by="test"))
        await tx.execute(insert(t.plan_limits).values(plan="basic", servers=99, memory_mb=999_999, disk_gb=99_999, backups=9))


@dataclass
class Rows:
    """Makes rows with sensible values in an open transaction."""

    number: int = 0
    customer_id: str = ""

    async def server(self, tx: Tx, **changes: Any) -> Server:
        if not self.customer_id:
            self.customer_id = (await customers.add(tx, "customer", "basic")).id
            await nodes.put(tx, Node("pve1", 65_536, 1_000, 16, "local-lvm", "vmbr0", {"fabric": 9000}))
        self.number += 1
        values: dict[str, Any] = {
            "id": new_id(), "customer_id": self.customer_id, "name": f"game-{self.number}", "ctype": ContainerType.GAME, "flavor": "fabric",
            "version": "1.21.1", "memory_mb": 4096, "cores": 2, "disk_gb": 20, "node": "pve1", "storage": "local-lvm", "bridge": "vmbr0",
            "template_vmid": 9000, "vmid": 10_000 + self.number, "address": f"10.20.0.{self.number}", "state": ServerState.CREATING,
            "desired": Desired.RUNNING, "desired_by": "customer", "edge": Edge.OPEN, "token_version": 1, "created_at": tx.now,
        }  # fmt: skip
        return await servers.create(tx, Server(**(values | changes)))

    async def operation(self, tx: Tx, server: Server | None = None, kind: OperationKind = OperationKind.PROVISION) -> Operation:
        server = server or await self.server(tx)
        return await operations.create(
            tx, server=server, kind=kind, queue=Queue.PROVISIONING, actor="customer:test", params={}, deadline_ms=3_600_000
        )
