"""Killed at every journaled boundary, before and after the effect, an operation ends as specified and leaks nothing.

Real processes die by SIGKILL; the sweep finds the orphan, the next attempt goes on. One cell per row always, every cell in ``make soak``.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import select

from flows.domain.operation import OperationKind, OperationState
from flows.state import orders, servers
from flows.state import tables as t
from flows.state.database import Database
from tests.support import fleet
from tests.support.controller import Controller, controller

STEPS = (
    "create_container",
    "configure",
    "start_container",
    "trust",
    "deploy_agent",
    "prepare_workload",
    "start_workload",
    "publish_dns",
    "register_proxy",
)
TASKS = frozenset({"create_container", "configure", "start_container", "destroy_container"})
UNDOS = ("prepare_workload", "trust", "start_container", "create_container")
#: Reached only where a creation fails at its last effect, the registration.
LATE_UNDOS = ("register_proxy", "publish_dns", "start_workload", "deploy_agent")
DELETES = ("deregister_proxy", "unpublish_dns", "stop_workload", "destroy_container")
#: What has no undo is carried on. Steps that a creation is killed in as well come last, and only in soak.
CONTROLS: Mapping[OperationKind, tuple[str, ...]] = {
    OperationKind.START: ("start_workload", "start_container", "publish_dns", "register_proxy"),
    OperationKind.STOP: ("stop_workload", "deregister_proxy"),
    OperationKind.RESTART: ("restart_workload", "deregister_proxy", "publish_dns", "register_proxy"),
}
#: Failing it, a creation is undone from the step reached.
FAULTS: Mapping[str, Mapping[str, object]] = {
    "undo": {"target": "runner", "mode": "fail_task", "call": "preseed_fabric.yml"},
    "late_undo": {"target": "bridge", "mode": "error", "call": "PUT *", "status": 422, "message": "lab: no"},
}


@dataclass(frozen=True)
class Cell:
    """``row`` groups the cells of one step and direction; the first of each row runs always."""

    kind: str
    boundary: str

    @property
    def row(self) -> str:
        if self.kind in CONTROLS:
            return self.kind
        return f"{self.kind}/{self.boundary.rpartition(':')[0]}"


_KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("provision", STEPS, "do"),
    ("undo", UNDOS, "undo"),
    ("late_undo", LATE_UNDOS, "undo"),
    ("delete", DELETES, "do"),
    *((kind.value, steps, "do") for kind, steps in CONTROLS.items()),
)


def cells() -> Iterator[Cell]:
    for kind, steps, direction in _KINDS:
        for step in steps:
            # After the effect first: the cell in which a repeat would be a second effect.
            points = ["effect", "begun", "done"] + (["task"] if step in TASKS and (direction == "do" or step != "configure") else [])
            yield from (Cell(kind, f"{step}:{direction}:{point}") for point in points)
    yield Cell("provision", "activate:do:begun")
    yield Cell("delete", "release:do:begun")
    yield Cell("provision", "claimed")


def _marked() -> Iterator[Any]:
    seen: set[str] = set()
    for cell in cells():
        first = cell.row not in seen
        seen.add(cell.row)
        yield pytest.param(cell, id=f"{cell.kind}-{cell.boundary}", marks=[] if first else [pytest.mark.soak])


@pytest.fixture
async def database(world: fleet.World) -> AsyncIterator[Database]:
    opened = Database(world.settings.database.url.get_secret_value())
    yield opened
    await opened.close()


_names = itertools.count(1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("cell", list(_marked()))
async def test_killed_at(world: fleet.World, database: Database, cell: Cell) -> None:
    name = f"kill{next(_names)}"
    if cell.kind == "provision":
        await _provision(world, database, name, cell)
    elif cell.kind in FAULTS:
        await _undo(world, database, name, cell)
    elif cell.kind in CONTROLS:
        await _control(world, database, name, cell)
    else:
        await _delete(world, database, name, cell)
    await _nothing_leaked(world, database)


async def _provision(world: fleet.World, database: Database, name: str, cell: Cell) -> None:
    async with controller(world, kill_at={1: cell.boundary}) as run:
        operation_id, server_id = await fleet.order(world, database, name)
        before = await _killed(run, operation_id)
        operation = await run.ended(operation_id)
        assert operation.state is OperationState.SUCCEEDED, (operation, run.log)
        await _no_step_again(database, operation_id, before)
        # Gives its place back, so that every cell begins alike.
        async with database.write() as tx:
            gone = await orders.delete(tx, server_id, "test", deadline_ms=600_000)
        assert gone.operation is not None
        assert (await run.ended(gone.operation.id)).state is OperationState.SUCCEEDED


async def _undo(world: fleet.World, database: Database, name: str, cell: Cell) -> None:
    fault = world.control("POST", "/faults", **FAULTS[cell.kind])
    assert isinstance(fault, dict)
    try:
        async with controller(world, kill_at={1: cell.boundary}) as run:
            operation_id, server_id = await fleet.order(world, database, name)
            before = await _killed(run, operation_id)
            operation = await run.ended(operation_id)
            assert operation.state is OperationState.FAILED, (operation, run.log)
            await _no_step_again(database, operation_id, before)
    finally:
        world.control("DELETE", f"/faults/{fault['id']}")
    async with database.read() as tx:
        server = (await tx.execute(select(t.servers).where(t.servers.c.id == server_id))).one()
        vmid = (await tx.execute(select(t.vmids).where(t.vmids.c.vmid == server.vmid))).one()
    assert server.state == "failed"
    assert vmid.state == "quarantined"


async def _control(world: fleet.World, database: Database, name: str, cell: Cell) -> None:
    """A start finds the workload stopped and its container down, as after a reboot of the node."""
    kind = OperationKind(cell.kind)
    async with controller(world) as run:
        operation_id, server_id = await fleet.order(world, database, name)
        assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED
        if kind is OperationKind.START:
            await _ordered(run, server_id, OperationKind.STOP)
            async with database.read() as tx:
                vmid = (await tx.execute(select(t.servers.c.vmid).where(t.servers.c.id == server_id))).scalar_one()
            world.control("POST", f"/containers/{vmid}/stop")
        run.engine.kill_at[1] = cell.boundary
        async with database.write() as tx:
            ordered = await orders.control(tx, server_id, kind, "test", deadline_ms=600_000)
        assert ordered.operation is not None and ordered.operation.kind is kind
        before = await _killed(run, ordered.operation.id)
        del run.engine.kill_at[1]
        operation = await run.ended(ordered.operation.id)
        assert operation.state is OperationState.SUCCEEDED, (operation, run.log)
        await _no_step_again(database, operation.id, before)
        published = kind is not OperationKind.STOP
        assert (name in (await run.deps.proxy.view()).registrations) is published
        async with database.read() as tx:
            server = await servers.get(tx, server_id)
        assert server is not None and (await run.deps.agents.ready(server))[0] is published
        async with database.write() as tx:
            gone = await orders.delete(tx, server_id, "test", deadline_ms=600_000)
        assert gone.operation is not None
        assert (await run.ended(gone.operation.id)).state is OperationState.SUCCEEDED


async def _ordered(run: Controller, server_id: str, kind: OperationKind) -> None:
    async with run.deps.database.write() as tx:
        ordered = await orders.control(tx, server_id, kind, "test", deadline_ms=600_000)
    assert ordered.operation is not None
    assert (await run.ended(ordered.operation.id)).state is OperationState.SUCCEEDED


async def _delete(world: fleet.World, database: Database, name: str, cell: Cell) -> None:
    async with controller(world) as run:
        operation_id, server_id = await fleet.order(world, database, name)
        assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED
        run.engine.kill_at[1] = cell.boundary
        async with database.write() as tx:
            ordered = await orders.delete(tx, server_id, "test", deadline_ms=600_000)
        assert ordered.operation is not None and ordered.operation.kind is OperationKind.DELETE
        before = await _killed(run, ordered.operation.id)
        operation = await run.ended(ordered.operation.id)
        assert operation.state is OperationState.SUCCEEDED, (operation, run.log)
        await _no_step_again(database, operation.id, before)


async def _killed(run: Controller, operation_id: str) -> dict[tuple[str, str], int]:
    """Waits until the first attempt's process died by its own hand; the journal's completed steps at that moment."""

    async def dead() -> bool:
        return any(p.returncode == -9 for p in run.engine.processes.values())

    await run.until("the executor's death", dead, 40)
    return {(r.step, r.direction): r.runs for r in await _journal(run.deps.database, operation_id) if r.state == "done"}


async def _journal(database: Database, operation_id: str) -> list[Any]:
    async with database.read() as tx:
        return list(await tx.execute(select(t.journal).where(t.journal.c.operation_id == operation_id)))


async def _no_step_again(database: Database, operation_id: str, before: dict[tuple[str, str], int]) -> None:
    after = {(r.step, r.direction): r.runs for r in await _journal(database, operation_id)}
    assert {key: after[key] for key in before} == before


async def _nothing_leaked(world: fleet.World, database: Database) -> None:
    """Container, VMID, address, record, registration, lease: none without a living server, and every server here is gone."""
    state = world.control("GET", "/state")
    assert isinstance(state, dict)
    assert [c["vmid"] for c in state["containers"].values() if not c["template"]] == []
    async with database.read() as tx:
        assert list(await tx.execute(select(t.leases.c.subject).where(t.leases.c.holder.is_not(None)))) == []
        assert list(await tx.execute(select(t.vmids.c.vmid).where(t.vmids.c.state != "quarantined"))) == []
        assert list(await tx.execute(select(t.addresses.c.address).where(t.addresses.c.state != "quarantined"))) == []
        assert list(await tx.execute(select(t.operations.c.id).where(t.operations.c.live_server.is_not(None)))) == []
        assert list(await tx.execute(select(t.repairs.c.id).where(t.repairs.c.outcome.is_(None)))) == []
    async with controller(world) as run:
        assert (await run.deps.proxy.view()).registrations == {}
        assert (await run.deps.dns.zone()).owners == {}
