"""Provisioning against a fleet that lies, loses answers and is in use by others: real processes, real protocols."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import select

from flows.decide.placement import place
from flows.domain.operation import OperationState
from flows.domain.ports import CloneSpec
from flows.domain.server import BillingState, ServerState
from flows.state import control, customers, orders, servers
from flows.state import tables as t
from tests.support import fleet
from tests.support.controller import Controller

pytestmark = pytest.mark.timeout(240)
Arm = Callable[..., None]


async def _ordered(world: fleet.World, run: Controller, name: str, ctype: str = "game") -> tuple[str, str]:
    return await fleet.order(world, run.deps.database, name, ctype)


async def _server(run: Controller, server_id: str) -> object:
    async with run.deps.database.read() as tx:
        found = await servers.get(tx, server_id)
    assert found is not None
    return found


async def test_an_answer_lost_after_the_clone_makes_one_container(world: fleet.World, run: Controller, name: str, faults: Arm) -> None:
    faults("proxmox", "lose_answer", call="POST */clone*", count=1)
    operation_id, _ = await _ordered(world, run, name)
    assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED
    state = world.control("GET", "/state")
    assert isinstance(state, dict)
    made = [c for c in state["containers"].values() if f"zlh-op-{operation_id}" in str(c)]
    assert len(made) == 1


async def test_half_a_clone_that_nobody_can_destroy_waits_for_a_person_and_leaks_nothing(
    world: fleet.World, run: Controller, name: str, faults: Arm
) -> None:
    """Proxmox refuses to destroy under ``lock: create``; only ``pct unlock`` at the node helps."""
    faults("proxmox", "die_locked", count=1)
    operation_id, server_id = await _ordered(world, run, name)

    async def waits() -> bool:
        return (await run.operation(operation_id)).state is OperationState.CLEANUP_REQUIRED

    await run.until("the clean-up to wait for a person", waits, 140)
    async with run.deps.database.read() as tx:
        server = await servers.get(tx, server_id)
    assert server is not None
    world.control("POST", f"/containers/{server.vmid}/unlock")
    async with run.deps.database.write() as tx:
        await orders.retry(tx, operation_id, "test", place=place, ranges=fleet.ranges(world.settings), cleanup=True)
    operation = await run.ended(operation_id)
    assert operation.state is OperationState.FAILED
    assert await run.deps.proxmox.proven_absent(server.vmid, template_vmid=server.template_vmid)


async def test_a_vmid_that_somebody_took_is_burnt_and_another_used(world: fleet.World, run: Controller, name: str) -> None:
    operation_id, server_id = await _ordered(world, run, name)
    async with run.deps.database.read() as tx:
        server = await servers.get(tx, server_id)
    assert server is not None
    upid = await run.deps.proxmox.clone(CloneSpec(server.node, server.template_vmid, server.vmid, server.storage, "stranger", "somebody else's"))
    await run.deps.proxmox.wait(upid, 20)
    assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED
    async with run.deps.database.read() as tx:
        moved = await servers.get(tx, server_id)
        burnt = (await tx.execute(select(t.vmids.c.state).where(t.vmids.c.vmid == server.vmid))).scalar_one()
    assert moved is not None and moved.vmid != server.vmid
    assert burnt == "burnt"
    config = await run.deps.proxmox.config(server.node, server.vmid)
    assert "somebody else's" in config.description  # the stranger was not touched


async def test_two_runs_of_one_attempt_do_everything_once(world: fleet.World, run: Controller, name: str) -> None:
    operation_id, _ = await _ordered(world, run, name)
    async with run.deps.database.read() as tx:
        generation = await control.generation(tx)
    argv = [sys.executable, "-m", "tests.support.executor", operation_id, "1", str(generation)]
    twins = [
        await asyncio.create_subprocess_exec(*argv, env=fleet.process_env(world), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        for _ in range(2)
    ]
    said = sorted([(await twin.communicate())[0].decode().rstrip().splitlines()[-1] for twin in twins])
    assert said == ["outcome succeeded", "outcome superseded"]
    async with run.deps.database.read() as tx:
        rows = list(await tx.execute(select(t.journal.c.runs).where(t.journal.c.operation_id == operation_id)))
    assert {r.runs for r in rows} == {1}


async def test_a_run_of_an_older_generation_ends_before_any_effect(world: fleet.World, run: Controller, name: str) -> None:
    operation_id, _ = await _ordered(world, run, name)
    async with run.deps.database.read() as tx:
        generation = await control.generation(tx)
    argv = [sys.executable, "-m", "tests.support.executor", operation_id, "1", str(generation - 1)]
    old = await asyncio.create_subprocess_exec(*argv, env=fleet.process_env(world), stdout=asyncio.subprocess.PIPE)
    assert b"outcome superseded" in (await old.communicate())[0]
    async with run.deps.database.read() as tx:
        assert list(await tx.execute(select(t.journal).where(t.journal.c.operation_id == operation_id))) == []
    assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED


async def test_deletion_during_creation_cancels_and_undoes(world: fleet.World, run: Controller, name: str, faults: Arm) -> None:
    faults("runner", "slow", call="deploy_agent.yml", seconds=30)
    operation_id, server_id = await _ordered(world, run, name)

    async def deploying() -> bool:
        return (await run.operation(operation_id)).step == "deploy_agent"

    await run.until("the agent's deployment", deploying, 30)
    async with run.deps.database.write() as tx:
        asked = await orders.delete(tx, server_id, "test", deadline_ms=600_000)
    assert asked.operation is not None and asked.operation.id == operation_id
    assert (await run.ended(operation_id)).state is OperationState.CANCELLED
    async with run.deps.database.read() as tx:
        server = await servers.get(tx, server_id)
        vmid = (await tx.execute(select(t.vmids.c.state).where(t.vmids.c.vmid == server.vmid))).scalar_one() if server else None
    assert server is not None and server.state is ServerState.DELETED
    assert vmid == "quarantined"


@pytest.mark.parametrize(
    ("target", "call", "step"),
    [("proxmox", "POST */clone*", "create_container"), ("dns", "UPDATE*", "publish_dns"), ("bridge", "PUT *", "register_proxy")],
)
async def test_deleted_while_a_write_is_on_its_way_nothing_lands_after_the_undo(
    world: fleet.World, run: Controller, name: str, faults: Arm, target: str, call: str, step: str
) -> None:
    faults(target, "slow", call=call, seconds=3.0, count=1)
    operation_id, server_id = await _ordered(world, run, name)

    async def on_its_way() -> bool:
        return (await run.operation(operation_id)).step == step

    await run.until(step, on_its_way, 30)
    await asyncio.sleep(0.3)
    async with run.deps.database.write() as tx:
        await orders.delete(tx, server_id, "test", deadline_ms=600_000)
    assert (await run.ended(operation_id)).state is OperationState.CANCELLED
    await asyncio.sleep(3.5)  # whatever was abandoned would have landed by now
    state = world.control("GET", "/state")
    assert isinstance(state, dict)
    assert [c for c in state["containers"].values() if f"zlh-op-{operation_id}" in str(c)] == []
    assert name not in (await run.deps.proxy.view()).registrations
    assert not [n for n in (await run.deps.dns.zone()).owners if n.startswith(name)]


async def test_suspension_during_creation_finishes_without_starting(world: fleet.World, run: Controller, name: str) -> None:
    operation_id, server_id = await _ordered(world, run, name)
    async with run.deps.database.write() as tx:
        await customers.set_billing(tx, world.customer_id, BillingState.SUSPENDED, "test")
    try:
        assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED
        async with run.deps.database.read() as tx:
            server = await servers.get(tx, server_id)
        assert server is not None and server.state is ServerState.SUSPENDED
        assert (await run.deps.agents.ready(server))[0] is False
        assert name not in (await run.deps.proxy.view()).registrations
        assert not [n for n in (await run.deps.dns.zone()).owners if n.startswith(name)]
    finally:
        async with run.deps.database.write() as tx:
            await customers.set_billing(tx, world.customer_id, BillingState.ACTIVE, "test")


async def test_a_failed_undo_is_cleaned_up_later(world: fleet.World, run: Controller, name: str, faults: Arm) -> None:
    faults("runner", "fail_task", call="preseed_fabric.yml", count=1)
    faults("proxmox", "error", call="DELETE *", status=500, message="lab: no")
    operation_id, server_id = await _ordered(world, run, name)

    async def stuck() -> bool:
        return (await run.operation(operation_id)).state is OperationState.CLEANUP_REQUIRED

    await run.until("the undo to fail", stuck, 110)
    world.control("DELETE", "/faults")
    async with run.deps.database.write() as tx:  # the back-off is a minute: let it have passed
        await tx.execute(t.operations.update().where(t.operations.c.id == operation_id).values(progress_at=tx.now - 3_600_000))
    assert (await run.ended(operation_id)).state is OperationState.FAILED
    async with run.deps.database.read() as tx:
        server = await servers.get(tx, server_id)
    assert server is not None and server.state is ServerState.FAILED
    assert await run.deps.proxmox.proven_absent(server.vmid, template_vmid=server.template_vmid)
