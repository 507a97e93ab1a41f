"""Levels 2 and 3 against the real peers of the lab: seen, healed by an operation or asked of a person, proven, told; and what is left alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select, update

from flows.act import approvals
from flows.act.policy import policy_of
from flows.act.sweep import SweepResult, observe
from flows.decide.plan import decide
from flows.domain.finding import Action, Decision, Outcome, Review
from flows.domain.operation import OperationState
from flows.domain.server import Server
from flows.errors import Conflict
from flows.state import control, repairs, reviews, servers, vmids
from flows.state import tables as t
from tests.support import fleet
from tests.support.controller import Controller

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """Servers of the module by name, made once."""
    return {}


@pytest.fixture
async def game(world: fleet.World, run: Controller, made: dict[str, str]) -> AsyncIterator[Server]:
    """An active, ready, published game server, level 3 allowed, and no repair within the hour that its breaker would count."""
    if "game" not in made:
        operation_id, made["game"] = await fleet.order(world, run.deps.database, "lotus")
        assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED
    async with run.deps.database.write() as tx:
        await control.set_repair_level(tx, 3, "test")
        await tx.execute(update(t.repairs).values(intent_at=t.repairs.c.intent_at - 3_600_000))
        server = await servers.get(tx, made["game"])
    assert server is not None
    yield server


async def _outcomes(run: Controller, action: Action) -> list[Outcome | None]:
    """The newest first."""
    async with run.deps.database.read() as tx:
        return [row.outcome for row in await repairs.list_(tx) if row.action is action]


async def _mended(run: Controller, action: Action, failed: int = 0) -> None:
    """Sweeps until a repair of the action has its outcome, after so many that failed, and it is a good one."""

    async def over() -> bool:
        found = await _outcomes(run, action)
        return len(found) > failed and found[0] is not None

    await run.until(f"{action} has ended", over, 30)
    assert await _outcomes(run, action) == [Outcome.REPAIRED] + [Outcome.FAILED] * failed


async def _asked(run: Controller, action: Action) -> Review:
    found: list[Review] = []

    async def waits() -> bool:
        async with run.deps.database.read() as tx:
            found[:] = [r for r in await reviews.pending(tx) if r.action is action]
        return bool(found)

    await run.until(f"{action} is asked", waits, 20)
    return found[0]


def _ordered(result: SweepResult) -> list[str]:
    return [outcome for _, outcome in result.outcomes]


async def test_a_silent_agent_is_restarted_through_its_node(world: fleet.World, run: Controller, game: Server) -> None:
    world.control("POST", f"/agents/{game.vmid}/kill")
    assert _ordered(await run.sweep()) == [], "once is not offline"
    assert _ordered(await run.sweep()) == ["ordered"]
    assert _ordered(await run.sweep()) == [], "its operation is under way"
    await _mended(run, Action.RESTART_AGENT)
    assert (await run.deps.agents.ready(game))[0], "the game outlived its agent's restart"
    async with run.deps.database.read() as tx:
        told = list(await tx.execute(select(t.outbox.c.event).where(t.outbox.c.kind == "repair_succeeded", t.outbox.c.channel == "alerts-repairs")))
    assert any(row.event["level"] == 2 for row in told)


async def test_a_container_that_died_is_started_and_one_that_a_person_stopped_is_not(world: fleet.World, run: Controller, game: Server) -> None:
    world.control("POST", f"/containers/{game.vmid}/die")
    await _mended(run, Action.START_WORKLOAD)
    assert "lotus" in (await run.deps.proxy.view()).registrations
    world.control("POST", f"/containers/{game.vmid}/stop")
    for _ in range(3):
        await run.sweep()
    plan = decide(await observe(run.deps), policy_of(run.deps.settings))
    assert [f.key for f in plan.findings] == [], "root@pam stopped it"
    assert await run.deps.proxmox.status(game.node, game.vmid) == "stopped"
    world.control("POST", f"/containers/{game.vmid}/start")


async def test_a_game_that_crashed_again_and_again_is_restarted_once_per_approval(world: fleet.World, run: Controller, game: Server) -> None:
    async def ready() -> bool:
        return (await run.deps.agents.ready(game))[0]

    await run.until("it runs", ready, 20)
    for _ in range(3):
        world.control("POST", f"/agents/{game.vmid}/crash", reason="oom")
    review = await _asked(run, Action.RESTART_WORKLOAD)
    assert review.plan["evidence"] | {"at": 0} == {"class": "oom", "at": 0, "count": 3}
    assert not await ready()
    approved = await approvals.approve(run.deps, review.id, "cli:anna")
    assert approved.decision is Decision.APPROVED
    with pytest.raises(Conflict, match="approved by cli:anna"):
        await approvals.approve(run.deps, review.id, "cli:bert")
    await _mended(run, Action.RESTART_WORKLOAD)
    async with run.deps.database.read() as tx:
        used = await reviews.get(tx, review.id)
        lines = [row.action for row in await tx.execute(select(t.audit.c.action).where(t.audit.c.subject == f"review:{review.id}"))]
    assert used is not None and used.decision is Decision.CARRIED_OUT
    assert lines == ["review.requested", "review.approved", "review.carried_out"]


async def test_a_container_without_a_record_is_destroyed_as_approved_and_nothing_else(world: fleet.World, run: Controller, game: Server) -> None:
    operation_id, server_id = await fleet.order(world, run.deps.database, "gone")
    assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED
    async with run.deps.database.write() as tx:
        server = await servers.get(tx, server_id)
        assert server is not None
        for table in (t.vmids, t.addresses, t.host_keys, t.journal, t.attempts, t.operations):
            column = table.c.operation_id if "operation_id" in table.c else table.c.server_id
            await tx.execute(delete(table).where(column == (operation_id if column.name == "operation_id" else server_id)))
        await tx.execute(delete(t.servers).where(t.servers.c.id == server_id))
    review = await _asked(run, Action.DESTROY_CONTAINER)
    assert review.plan["evidence"]["vmid"] == server.vmid  # type: ignore[index] # a plan's JSON
    async with run.deps.database.write() as tx:  # somebody gets the number, after all
        await tx.execute(insert(t.vmids).values(vmid=server.vmid, state="reserved", server_id=game.id, since=tx.now, reason=""))
    await approvals.approve(run.deps, review.id, "cli:anna")
    assert await run.sweep()
    assert await run.deps.proxmox.status(server.node, server.vmid) == "running", "its number is reserved"
    async with run.deps.database.write() as tx:
        await tx.execute(delete(t.vmids).where(t.vmids.c.vmid == server.vmid))
    again = await _asked(run, Action.DESTROY_CONTAINER)
    assert again.id != review.id, "an approval is for one act"
    await approvals.approve(run.deps, again.id, "cli:anna")
    await _mended(run, Action.DESTROY_CONTAINER, failed=1)
    assert await run.deps.proxmox.proven_absent(server.vmid)
    async with run.deps.database.read() as tx:
        assert {r.vmid: r.state for r in await vmids.list_(tx)}[server.vmid] == "quarantined"
    assert await run.deps.proxmox.status(game.node, game.vmid) == "running"


async def test_a_dry_run_takes_no_epoch_and_writes_no_row(world: fleet.World, run: Controller, game: Server) -> None:
    """As a process of its own, while another controller holds the epoch, with much to be done."""
    world.control("POST", "/bridge/deregister", name="lotus")
    world.control("POST", "/dns", op="delete", name="lotus.play.example", rtype="A")
    before = _dump(world)
    program = Path(world.settings.ansible.project_dir) / ".venv" / "bin" / "zlh"
    process = await asyncio.create_subprocess_exec(
        str(program), "reconcile", "--dry-run", "--json", env=fleet.process_env(world), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1 and b'"register_proxy"' in out and b'"dry run"' in out
    assert _dump(world) == before
    assert "lotus" not in (await run.deps.proxy.view()).registrations


async def test_a_missing_container_is_asked_and_cannot_be_approved_yet(world: fleet.World, run: Controller, game: Server) -> None:
    world.control("POST", f"/containers/{game.vmid}/destroy")
    review = await _asked(run, Action.RESTORE_BACKUP)
    with pytest.raises(Conflict, match="there is no flow `backup` yet"):
        await approvals.approve(run.deps, review.id, "cli:anna")
    async with run.deps.database.read() as tx:
        assert [r.id for r in await reviews.pending(tx) if r.action is Action.RESTORE_BACKUP] == [review.id], "asked once, and still open"


def _dump(world: fleet.World) -> list[str]:
    connection = sqlite3.connect(world.env["ZLH_DATABASE__URL"].partition(":///")[2])
    try:
        return list(connection.iterdump())
    finally:
        connection.close()
