"""Each repair of the sweep against the real peers of the lab: seen, healed, proven, told; and what it leaves alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import select, update

from flows.act.sweep import SweepResult
from flows.domain.finding import BrakeScope
from flows.domain.operation import OperationState
from flows.domain.server import BillingState, Server, ServerState
from flows.state import brakes, customers, servers
from flows.state import tables as t
from tests.support import fleet
from tests.support.controller import Controller

pytestmark = pytest.mark.timeout(150)
Arm = Callable[..., None]


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """Servers of the module by name, made once."""
    return {}


@pytest.fixture
async def game(world: fleet.World, run: Controller, made: dict[str, str]) -> AsyncIterator[Server]:
    """An active, ready, published game server; a clean sweep behind it, and no repair within the hour that its breaker would count."""
    if "game" not in made:
        operation_id, made["game"] = await fleet.order(world, run.deps.database, "heal")
        assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED
    async with run.deps.database.read() as tx:
        server = await servers.get(tx, made["game"])
    assert server is not None
    async with run.deps.database.write() as tx:
        await tx.execute(update(t.repairs).values(intent_at=t.repairs.c.intent_at - 3_600_000))
    yield server


def done(result: SweepResult) -> dict[str, str]:
    return dict(result.outcomes)


async def test_a_healthy_fleet_is_left_alone(run: Controller, game: Server) -> None:
    result = await run.sweep()
    assert (result.outcome, list(result.outcomes)) == ("clean", [])


async def test_a_deleted_record_is_published_again(world: fleet.World, run: Controller, game: Server) -> None:
    await run.sweep()
    world.control("POST", "/dns", op="delete", name="heal.play.example", rtype="A")
    result = await run.sweep()
    assert done(result) == {f"dns_record/{game.id}": "repaired"}
    assert (await run.sweep()).outcome == "clean"
    async with run.deps.database.read() as tx:
        told = list(await tx.execute(select(t.outbox.c.kind).where(t.outbox.c.channel == "alerts-repairs", t.outbox.c.kind == "repair_succeeded")))
        opened = list(await tx.execute(select(t.episodes).where(t.episodes.c.server_id == game.id, t.episodes.c.closed_at.is_(None))))
    assert told and not opened


async def test_a_record_that_points_elsewhere_is_corrected(world: fleet.World, run: Controller, game: Server) -> None:
    world.control("POST", "/dns", op="replace", name="heal.play.example", rtype="A", value="192.0.2.66")
    assert done(await run.sweep()) == {f"dns_record/{game.id}": "repaired"}


async def test_a_lost_registration_is_made_again(world: fleet.World, run: Controller, game: Server) -> None:
    world.control("POST", "/bridge/deregister", name="heal")
    assert done(await run.sweep()) == {f"proxy_registration/{game.id}": "repaired"}


async def test_a_registration_that_nobody_ordered_is_withdrawn_after_two_sweeps(world: fleet.World, run: Controller, game: Server) -> None:
    world.control("POST", "/bridge/register", name="ghost", address="127.20.9.9", port=25565)
    first = await run.sweep()
    assert list(first.outcomes) == []
    assert done(await run.sweep()) == {"proxy_stale_registration/proxy:ghost": "repaired"}
    assert "ghost" not in (await run.deps.proxy.view()).registrations


async def test_a_name_of_ours_that_no_server_wants_is_withdrawn_and_a_strangers_is_not(world: fleet.World, run: Controller, game: Server) -> None:
    from flows.domain.sources import Record

    await run.deps.dns.publish("gone.play.example", [Record("gone.play.example", "A", "192.0.2.7")], "no-such-server", [])
    world.control("POST", "/dns", op="add", name="www.play.example", rtype="A", value="192.0.2.8")
    for _ in range(3):
        await run.sweep()
    zone = await run.deps.dns.zone()
    assert "gone.play.example" not in zone.records
    assert "www.play.example" in zone.records


async def test_lost_rights_are_no_absence(run: Controller, game: Server, faults: Arm) -> None:
    faults("proxmox", "rights_lost")
    for _ in range(2):
        result = await run.sweep()
        assert list(result.outcomes) == []
    async with run.deps.database.read() as tx:
        row = (await tx.execute(select(t.sources).where(t.sources.c.source == "proxmox"))).one()
    assert row.misses >= 2
    assert "VM.Audit" in row.reason


async def test_an_unknown_source_closes_no_finding_and_opens_one_for_itself(run: Controller, game: Server, faults: Arm) -> None:
    faults("dns", "unreachable")
    result = await run.sweep()
    assert result.plan is not None
    assert [f.key for f in result.plan.findings] == ["source_unknown/source:dns"]
    assert "dns_record" in result.plan.skipped


async def test_a_suspended_customers_server_is_withdrawn_and_stopped(world: fleet.World, run: Controller, game: Server) -> None:
    async with run.deps.database.write() as tx:
        await customers.set_billing(tx, world.customer_id, BillingState.SUSPENDED, "test")
    try:

        async def stopped() -> bool:
            await run.sweep()
            return not (await run.deps.agents.ready(game))[0]

        await run.until("the workload stopped", stopped, 20)
        assert "heal" not in (await run.deps.proxy.view()).registrations
        async with run.deps.database.read() as tx:
            server = await servers.get(tx, game.id)
        assert server is not None and server.state is ServerState.SUSPENDED
    finally:
        async with run.deps.database.write() as tx:
            await customers.set_billing(tx, world.customer_id, BillingState.ACTIVE, "test")


async def test_a_pause_stops_every_repair_and_a_dead_agent_is_not_withdrawn(world: fleet.World, run: Controller, made: dict[str, str]) -> None:
    operation_id, server_id = await fleet.order(world, run.deps.database, "paused")
    assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED
    async with run.deps.database.write() as tx:
        await brakes.pause(tx, BrakeScope.ALL, "", "test", "test")
    world.control("POST", "/dns", op="delete", name="paused.play.example", rtype="A")
    result = await run.sweep()
    assert result.outcome == "paused"
    assert list(result.outcomes) == []
    async with run.deps.database.write() as tx:
        await brakes.resume(tx, BrakeScope.ALL, "", "test")
    assert done(await run.sweep())[f"dns_record/{server_id}"] == "repaired"
    async with run.deps.database.read() as tx:
        server = await servers.get(tx, server_id)
    assert server is not None
    world.control("POST", f"/agents/{server.vmid}/kill")
    for _ in range(3):
        result = await run.sweep()
    assert result.plan is not None
    assert f"agent_offline/{server_id}" in {s.finding.key: s.reason for s in result.plan.suppressed if s.reason == "level_disabled"}
    assert "paused" in (await run.deps.proxy.view()).registrations  # silence is not unreadiness
