"""The handlers of repairs: which source each asks, and in which order; what each leaves alone."""

from __future__ import annotations

import contextlib

import pytest
from sqlalchemy import select, update

from flows.act import repair as repairing
from flows.act.deps import Deps
from flows.domain.agent import WorkloadState
from flows.domain.finding import Action, BrakeScope, Check, Finding, Outcome, Repair
from flows.domain.lease import LeaseKind
from flows.domain.server import BillingState, ContainerType, Edge, Server, ServerState
from flows.domain.sources import Registration, TaskStatus
from flows.errors import Fenced, Unreachable
from flows.state import accounts, brakes, customers, epochs, leases, repairs
from flows.state import tables as t
from tests.unit.act import fakes
from tests.unit.act.conftest import House

DOWN = Unreachable("down", why="no answer")


async def _carry_out(house: House, finding: Finding, deps: Deps | None = None) -> Outcome | None:
    deps = deps or house.deps()
    epoch = await epochs.begin(deps.database, deps.holder, 30_000)
    assert epoch is not None and finding.action is not None
    try:
        return await repairing.carry_out(deps, Repair(finding, finding.action), epoch, 40.0)
    finally:
        with contextlib.suppress(Fenced):
            await epochs.end(deps.database, epoch, deps.holder)


async def _registered(house: House) -> tuple[Server, Finding]:
    server = await house.server(edge=Edge.OPEN)
    house.world.registrations[server.name] = Registration(server.name, server.address, server.game_port)
    finding = fakes.finding(
        server, Check.PROXY_STALE_REGISTRATION, Action.DEREGISTER_PROXY, subject=f"proxy:{server.name}", evidence={"name": server.name}
    )
    return server, finding


async def test_an_unready_backend_is_deregistered_without_proxmox(house: House) -> None:
    """Its agent's word is enough: an unready backend must not stay because another source is down."""
    _, finding = await _registered(house)
    house.world.before["status"] = [DOWN] * 9
    assert await _carry_out(house, finding) is Outcome.REPAIRED
    assert not house.world.registrations


async def test_a_ready_backend_stays_registered(house: House) -> None:
    _, finding = await _registered(house)
    house.world.workload = WorkloadState.RUNNING
    assert await _carry_out(house, finding) is Outcome.ALREADY_HEALED
    assert house.world.registrations


async def test_a_stopped_container_is_proof_where_its_agent_is_silent(house: House) -> None:
    server, finding = await _registered(house)
    house.world.containers[server.vmid].status = "stopped"
    house.world.before["agent.ready"] = [DOWN] * 9
    assert await _carry_out(house, finding) is Outcome.REPAIRED


async def test_so_is_a_container_that_is_proven_gone(house: House) -> None:
    server, finding = await _registered(house)
    del house.world.containers[server.vmid]
    house.world.before["agent.ready"] = [DOWN] * 9
    assert await _carry_out(house, finding) is Outcome.REPAIRED


async def test_the_silence_of_a_running_container_proves_nothing(house: House) -> None:
    _, finding = await _registered(house)
    house.world.before["agent.ready"] = [DOWN] * 9
    assert await _carry_out(house, finding) is Outcome.FAILED
    assert house.world.registrations and house.world.times("deregister") == 0


async def _suspended(house: House, ctype: ContainerType = ContainerType.GAME) -> tuple[Server, Finding]:
    server = await house.server(edge=Edge.OPEN, ctype=ctype)
    async with house.db.write() as tx:
        await accounts.suspend(tx, server.customer_id, "test")
    house.world.workload = WorkloadState.RUNNING
    return server, fakes.finding(server, Check.BILLING_SUSPENDED, Action.SUSPEND_WORKLOAD)


async def test_a_suspended_game_is_stopped_without_proxmox(house: House) -> None:
    server, finding = await _suspended(house)
    house.world.before["status"] = [DOWN] * 9
    assert await _carry_out(house, finding) is Outcome.REPAIRED
    assert house.world.workload is WorkloadState.STOPPED
    assert (await house.present(server.id)).edge is Edge.WITHDRAWN


async def test_a_suspended_game_in_a_stopped_container_needs_no_agent(house: House) -> None:
    server, finding = await _suspended(house)
    house.world.containers[server.vmid].status = "stopped"
    house.world.before["agent.status"] = [DOWN] * 9
    assert await _carry_out(house, finding) is Outcome.ALREADY_HEALED


async def test_a_suspended_developer_container_is_shut_down(house: House) -> None:
    server, finding = await _suspended(house, ContainerType.DEV)
    assert await _carry_out(house, finding) is Outcome.REPAIRED
    assert house.world.containers[server.vmid].status == "stopped"


async def test_a_locked_developer_container_is_not_asked_to_shut_down(house: House) -> None:
    """Proxmox would say so in the task, which nobody waits for."""
    server, finding = await _suspended(house, ContainerType.DEV)
    house.world.containers[server.vmid].lock = "backup"
    assert await _carry_out(house, finding) is Outcome.FAILED
    assert house.world.times("proxmox.shutdown") == 0
    (row,) = await house.rows(select(t.repairs.c.detail))
    assert "CT is locked (backup)" in row.detail


@pytest.mark.parametrize(("kind", "done"), [("vzdump", Outcome.REPAIRED), ("vzshutdown", Outcome.ALREADY_HEALED), ("vzstop", Outcome.ALREADY_HEALED)])
async def test_only_a_task_that_ends_it_counts_as_going_down(house: House, monkeypatch: pytest.MonkeyPatch, kind: str, done: Outcome) -> None:
    server, finding = await _suspended(house, ContainerType.DEV)

    async def running(self: fakes.Proxmox, vmid: int) -> list[TaskStatus]:
        return [TaskStatus(f"UPID:pve1:0000A1B2:00C3D4E5:6740A1B2:{kind}:{vmid}:root@pam:", finished=False, ok=False)]

    monkeypatch.setattr(fakes.Proxmox, "tasks_of", running)
    assert await _carry_out(house, finding) is done
    assert house.world.containers[server.vmid].status == ("stopped" if done is Outcome.REPAIRED else "running")


@pytest.mark.parametrize("moment", ["agent.status", "proxy.view"])
async def test_a_customer_who_is_resumed_meanwhile_keeps_an_active_server(house: House, moment: str) -> None:
    """Between the look and the withdrawal, or between the withdrawal and the stop."""
    server, finding = await _suspended(house)

    async def resume() -> None:
        async with house.db.write() as tx:
            await accounts.resume(tx, server.customer_id, "test")

    house.world.after[moment] = [resume]
    assert await _carry_out(house, finding) is Outcome.ALREADY_HEALED
    present = await house.present(server.id)
    assert (present.state, present.edge) == (ServerState.ACTIVE, Edge.OPEN)
    assert house.world.workload is WorkloadState.RUNNING


@pytest.mark.parametrize("ended", [None, Outcome.UNVERIFIED, Outcome.REPAIRED, Outcome.FENCED])
@pytest.mark.parametrize("ready", [True, False])
async def test_an_agent_hears_the_newest_token_where_a_stop_of_ours_may_be_on_its_way(house: House, ended: Outcome | None, *, ready: bool) -> None:
    """Its customer was suspended, and somebody stood still before the stop; by now the customer has paid and nothing else speaks to the agent.
    A game that does not run is not started by this."""
    server, stop = await _suspended(house)
    async with house.db.write() as tx:
        repair_id = await repairs.intent(tx, Repair(stop, Action.SUSPEND_WORKLOAD), 1)
        if ended is not None:
            await repairs.outcome(tx, repair_id, ended)
        await accounts.resume(tx, server.customer_id, "test")
    house.world.workload = WorkloadState.RUNNING if ready else WorkloadState.STOPPED
    done = await _carry_out(house, fakes.finding(server, Check.PROXY_REGISTRATION, Action.REGISTER_PROXY))
    assert done is (Outcome.REPAIRED if ready else Outcome.FAILED)
    assert house.world.times("agent.start") == (1 if ready and ended in (None, Outcome.UNVERIFIED) else 0)


async def test_a_superseded_sweep_withdraws_nothing(house: House) -> None:
    server, finding = await _suspended(house)
    async with house.db.write() as tx:
        await accounts.resume(tx, server.customer_id, "test")
        await customers.set_billing(tx, server.customer_id, BillingState.SUSPENDED, "test")

    async def newer() -> None:
        async with house.db.write() as tx:
            await tx.execute(update(t.epochs).values(epoch=t.epochs.c.epoch + 1))

    house.world.after["agent.status"] = [newer]
    with pytest.raises(Fenced):
        await _carry_out(house, finding)
    present = await house.present(server.id)
    assert (present.state, present.edge) == (ServerState.ACTIVE, Edge.OPEN)


async def test_a_bulk_repair_leaves_leased_and_paused_servers_as_they_are(house: House) -> None:
    """What others hold neither drifts nor is touched; whoever lost its registration and is free gets it back."""
    free, leased, paused = [await house.server(edge=Edge.OPEN) for _ in range(3)]
    async with house.db.write() as tx:
        await leases.take(tx, leased.id, LeaseKind.MAINTENANCE, "person", 3_600_000)
        await brakes.pause(tx, BrakeScope.SERVER, paused.id, "test", "test")
    house.world.backends = {s.name: Registration(s.name, s.address, s.game_port) for s in (free, leased)}
    house.world.registrations = {paused.name: Registration(paused.name, paused.address, paused.game_port)}
    finding = Finding(
        Check.SOURCE_DRIFT,
        "source:proxy",
        "drift",
        1,
        Action.REHYDRATE_PROXY,
        evidence={"servers": [free.id, leased.id], "stale": [paused.name]},
    )
    assert await _carry_out(house, finding) is Outcome.REPAIRED
    assert set(house.world.registrations) == {free.name, paused.name}
    assert await _carry_out(house, finding) is Outcome.ALREADY_HEALED
