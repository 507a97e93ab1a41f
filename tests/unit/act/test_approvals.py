"""A person's yes: to exactly the plan that was asked, once, and only while it can be carried out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from sqlalchemy import update

from flows.act import approvals
from flows.act import repair as repairing
from flows.act.sweep import sweep
from flows.decide.reviews import hash_of, plan_of
from flows.domain.agent import AgentStatus, WorkloadState
from flows.domain.finding import Action, BrakeScope, Check, Decision, Finding, Outcome, Repair, Review
from flows.domain.known import Known, Unknown
from flows.domain.operation import OperationKind, OperationState, Queue
from flows.domain.server import Desired, Server
from flows.domain.sources import Container, ProxmoxView
from flows.errors import Conflict, Fenced, NotFound, Unproven
from flows.state import brakes, control, epochs, operations, repairs, reviews, servers
from flows.state import tables as t
from tests.support.controller import NoGate
from tests.unit.act import fakes
from tests.unit.act.conftest import House

ORPHAN = Container(900, "pve1", "running", "late", frozenset({"zlh", "game"}))


async def _level(house: House, level: int) -> None:
    async with house.db.write() as tx:
        await control.set_repair_level(tx, level, "test")


async def _sweep(house: House, times: int = 1) -> list[tuple[str, str]]:
    done: list[tuple[str, str]] = []
    for _ in range(times):
        done += (await sweep(house.deps(), NoGate(), house.said.append)).outcomes
    return done


async def _waiting(house: House) -> list[Review]:
    async with house.db.read() as tx:
        return await reviews.pending(tx)


def _orphan(house: House, monkeypatch: pytest.MonkeyPatch, container: Container = ORPHAN) -> None:
    house.world.containers[900] = fakes.Container(container.status, tags=container.tags)
    house.world.raw[900] = {"hostname": container.name}

    async def view(self: fakes.Proxmox) -> ProxmoxView:
        present = {900: container} if 900 in self.w.containers else {}
        return ProxmoxView(containers=present, nodes_online={"pve1": True})

    monkeypatch.setattr(fakes.Proxmox, "view", view)


async def test_what_is_approved_is_destroyed_in_the_next_sweep_and_nothing_before(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await _level(house, 3)
    _orphan(house, monkeypatch)
    assert await _sweep(house, 4) == []
    (review,) = await _waiting(house)
    assert (review.action, review.requested_by) == (Action.DESTROY_CONTAINER, "system:controller")
    await approvals.approve(house.deps(), review.id, "cli:anna")
    assert 900 in house.world.containers
    assert await _sweep(house) == [("container_orphaned/container:900", "repaired")]
    assert 900 not in house.world.containers
    assert [row.state for row in await house.rows(t.vmids.select().where(t.vmids.c.vmid == 900))] == ["quarantined"]
    assert await _waiting(house) == []


async def test_a_plan_that_has_changed_is_not_approved(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await _level(house, 3)
    _orphan(house, monkeypatch)
    await _sweep(house, 3)
    (review,) = await _waiting(house)
    _orphan(house, monkeypatch, replace(ORPHAN, tags=ORPHAN.tags | {"wiki"}))
    with pytest.raises(Conflict, match="the plan has changed"):
        await approvals.approve(house.deps(), review.id, "cli:anna")
    await _sweep(house)
    (new,) = await _waiting(house)
    assert new.plan_hash != review.plan_hash
    async with house.db.read() as tx:
        old = await reviews.get(tx, review.id)
    assert old is not None and old.decision is Decision.WITHDRAWN


@pytest.mark.parametrize(("tag", "outcome"), [("wiki", "failed"), ("zlh-hold", "already_healed")])
async def test_what_changes_after_the_approval_is_left_alone(house: House, monkeypatch: pytest.MonkeyPatch, tag: str, outcome: str) -> None:
    """The sweep saw it as approved; the container itself says otherwise a moment later."""
    await _level(house, 3)
    _orphan(house, monkeypatch)
    await _sweep(house, 3)
    (review,) = await _waiting(house)
    await approvals.approve(house.deps(), review.id, "cli:anna")
    house.world.containers[900].tags |= {tag}
    assert await _sweep(house) == [("container_orphaned/container:900", outcome)]
    assert house.world.times("destroy") == house.world.times("proxmox.stop") == 0


@pytest.mark.parametrize("why", ["paused", "level", "rejected", "expired", "over"])
async def test_what_forbids_an_approval(house: House, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    await _level(house, 3)
    _orphan(house, monkeypatch)
    await _sweep(house, 3)
    (review,) = await _waiting(house)
    said = {"paused": "paused", "level": "level_disabled", "rejected": "rejected by cli:bert", "expired": "expired", "over": "is over"}[why]
    async with house.db.write() as tx:
        if why == "paused":
            await brakes.pause(tx, BrakeScope.ALL, "", "test", "test")
        elif why == "level":
            await control.set_repair_level(tx, 2, "test")
        elif why == "rejected":
            await reviews.reject(tx, review.id, "cli:bert", "mine")
        elif why == "expired":
            await tx.execute(update(t.reviews).values(expires_at=tx.now - 1))
        else:
            del house.world.containers[900]
    with pytest.raises(Conflict, match=said):
        await approvals.approve(house.deps(), review.id, "cli:anna")
    assert await _sweep(house) == []


async def test_one_that_waits_is_told_so_and_not_as_another_plan(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await _level(house, 3)
    _orphan(house, monkeypatch)
    await _sweep(house, 3)
    (review,) = await _waiting(house)
    _orphan(house, monkeypatch, replace(ORPHAN, lock="backup"))
    with pytest.raises(Conflict, match=r"cannot be carried out now: unconfirmed \(waits for its lock \(backup\)\)"):
        await approvals.approve(house.deps(), review.id, "cli:anna")
    _orphan(house, monkeypatch)
    await approvals.approve(house.deps(), review.id, "cli:anna")


async def test_an_agent_that_gives_no_answer_proves_nothing_over(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await _level(house, 2)
    await house.server()
    house.world.workload, house.world.last_crash = WorkloadState.ERROR, {"class": "oom", "at": 5, "count": 3}
    await _sweep(house)
    (review,) = await _waiting(house)
    probe = fakes.Agents.probe

    async def silent(self: fakes.Agents, asked: Sequence[Server]) -> Mapping[str, Known[AgentStatus] | Unknown]:
        return {server.id: Unknown("connect timed out after 3 s") for server in asked}

    monkeypatch.setattr(fakes.Agents, "probe", silent)
    with pytest.raises(Unproven, match="the agent does not say how the workload is"):
        await approvals.approve(house.deps(), review.id, "cli:anna")
    monkeypatch.setattr(fakes.Agents, "probe", probe)
    await approvals.approve(house.deps(), review.id, "cli:anna")


async def test_an_unknown_review(house: House) -> None:
    with pytest.raises(NotFound):
        await approvals.approve(house.deps(), "00000000-0000-7000-8000-000000000000", "cli:anna")


# Repairs that become operations


def _wants(house: House, server_id: str, action: Action, check: Check) -> Finding:
    return Finding(check, server_id, "s", 2, action, server_id=server_id, host="pve1", evidence={"class": "oom", "at": 5, "count": 3})


async def _carry_out(house: House, finding: Finding, review_id: str | None = None) -> Outcome | None:
    epoch = await epochs.begin(house.db, "me", 30_000)
    assert epoch is not None and finding.action is not None
    try:
        return await repairing.carry_out(house.deps(), Repair(finding, finding.action, review_id), epoch, 40.0)
    finally:
        with contextlib.suppress(Fenced):
            await epochs.end(house.db, epoch, "me")


def _stopped(house: House, vmid: int, monkeypatch: pytest.MonkeyPatch, by: str | None = None) -> None:
    house.world.containers[vmid].status = "stopped"

    async def view(self: fakes.Proxmox) -> ProxmoxView:
        present = {vmid: Container(vmid, "pve1", self.w.containers[vmid].status)}
        return ProxmoxView(present, {"pve1": True}, last_stop_by={vmid: by} if by else {})

    monkeypatch.setattr(fakes.Proxmox, "view", view)


async def test_a_start_is_ordered_run_and_settled_by_a_later_sweep(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await _level(house, 2)
    server = await house.server()
    _stopped(house, server.vmid, monkeypatch)
    finding = _wants(house, server.id, Action.START_WORKLOAD, Check.WORKLOAD_STOPPED)
    assert await _carry_out(house, finding) is Outcome.ORDERED
    assert await _carry_out(house, finding) is None, "one operation holds the server"
    async with house.db.read() as tx:
        (operation,) = await operations.list_(tx)
        (intent,) = await repairs.list_(tx)
    assert (operation.kind, operation.queue, operation.actor) == (OperationKind.START, Queue.REPAIRS, "system:controller")
    assert (intent.outcome, intent.operation_id, intent.counted) == (None, operation.id, True)
    async with house.db.write() as tx:
        await operations.set_state(tx, operation.id, OperationState.RUNNING)
        assert await repairs.settle(tx) == [] and await repairs.close_abandoned(tx) == [], "its operation has not ended"
        await operations.set_state(tx, operation.id, OperationState.FAILED, error={"what": "start", "why": "no memory"})
    async with house.db.write() as tx:
        [(row, outcome)] = await repairs.settle(tx)
    assert (outcome, row.detail) == (Outcome.FAILED, "its operation failed: no memory")


@pytest.mark.parametrize("meanwhile", ["person", "runs", "wanted stopped", "level lowered"])
async def test_a_start_that_is_not_wanted_any_more(house: House, monkeypatch: pytest.MonkeyPatch, meanwhile: str) -> None:
    await _level(house, 1 if meanwhile == "level lowered" else 2)
    server = await house.server()
    _stopped(house, server.vmid, monkeypatch, "root@pam" if meanwhile == "person" else None)
    if meanwhile == "runs":
        house.world.containers[server.vmid].status, house.world.workload = "running", WorkloadState.RUNNING
    if meanwhile == "wanted stopped":
        async with house.db.write() as tx:
            await servers.set_desired(tx, server.id, Desired.STOPPED, "customer")
    done = await _carry_out(house, _wants(house, server.id, Action.START_WORKLOAD, Check.WORKLOAD_STOPPED))
    assert done is (Outcome.ALREADY_HEALED if meanwhile in ("person", "runs") else None)
    async with house.db.read() as tx:
        assert await operations.list_(tx) == []


async def test_a_restart_after_crashes_needs_its_approval(house: House) -> None:
    await _level(house, 2)
    server = await house.server()
    house.world.workload, house.world.last_crash = WorkloadState.ERROR, {"class": "oom", "at": 5, "count": 3}
    finding = _wants(house, server.id, Action.RESTART_WORKLOAD, Check.WORKLOAD_ERROR)
    assert await _carry_out(house, finding) is None
    plan = plan_of(finding)
    async with house.db.write() as tx:
        review = Review(
            "r1", finding.check, Action.RESTART_WORKLOAD, server.id, hash_of(plan), plan, "system:controller", tx.now, tx.now + 60_000, server.id
        )
        await reviews.request(tx, [review])
        await reviews.approve(tx, "r1", "cli:anna")
    assert await _carry_out(house, finding, "r1") is Outcome.ORDERED
    async with house.db.write() as tx:
        assert not await reviews.carry_out(tx, "r1", review.plan_hash), "used up"


async def test_an_agent_that_answers_again_is_not_restarted(house: House) -> None:
    await _level(house, 2)
    server = await house.server()
    assert await _carry_out(house, _wants(house, server.id, Action.RESTART_AGENT, Check.AGENT_OFFLINE)) is Outcome.ALREADY_HEALED
