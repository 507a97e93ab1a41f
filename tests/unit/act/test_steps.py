"""Steps whose repeat, refusal or omission matters: restarts, agents that do not cooperate, suspended customers; and the registries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from flows.act import edge
from flows.act.repairs import ordering
from flows.act.repairs.registry import HANDLERS
from flows.act.steps.base import Effect, FinalStep, Step
from flows.act.steps.registry import STEPS
from flows.act.steps.workload import READY_S
from flows.domain.agent import WorkloadState
from flows.domain.finding import BECOME_OPERATIONS, NOT_YET, OPERATION_ACTIONS, Action
from flows.domain.flavor import ENVIRONMENTS, GAMES
from flows.domain.operation import OperationKind, OperationState, StepName, steps_of
from flows.domain.server import BillingState, ContainerType, Edge, ServerState
from flows.domain.sources import Registration, TaskStatus
from flows.errors import AmbiguousEffect, BadAnswer, Busy, TaskFailed, Unauthorized, Unproven, Unreachable
from flows.lab.bridge.backends import Backend, Backends, Superseded
from flows.settings import TimingSettings
from flows.state import accounts, attempts, customers, leases, servers
from flows.state import tables as t
from tests.unit.act import fakes
from tests.unit.act.conftest import House
from tests.unit.act.fakes import Container


@pytest.mark.parametrize("action", Action)
def test_every_action_has_a_handler_that_names_the_kind_of_its_effect(action: Action) -> None:
    if action in OPERATION_ACTIONS or action in BECOME_OPERATIONS or action in NOT_YET:
        assert action not in HANDLERS
        return
    handler = HANDLERS[action]
    assert isinstance(handler.effect, Effect) and handler.effect is not Effect.NONE
    assert 0 < handler.limit_s <= 10, "what needs longer is an operation"


def test_what_becomes_an_operation_names_its_kind() -> None:
    assert set(ordering.KINDS) == BECOME_OPERATIONS


@pytest.mark.parametrize("name", StepName)
def test_every_step_is_carried_names_the_kind_of_its_effect_and_ends(name: StepName) -> None:
    step = STEPS[name]
    assert isinstance(step, Step) and step.name is name
    timing = TimingSettings()
    assert isinstance(step.effect, Effect)
    assert step.deadline_s >= timing.lease_s + timing.sweep_s, "a run that died in it would be given up before it could be resumed"
    assert isinstance(step, FinalStep) == (step.effect is Effect.NONE)


@pytest.mark.parametrize("ctype", ContainerType)
@pytest.mark.parametrize("kind", OperationKind)
def test_every_operation_ends_by_exactly_one_final_step(kind: OperationKind, ctype: ContainerType) -> None:
    finals = [isinstance(STEPS[name], FinalStep) for name in steps_of(kind, ctype)]
    assert finals == [False] * (len(finals) - 1) + [True]


async def test_a_restart_is_not_repeated_where_its_second_look_failed(house: House) -> None:
    house.world.before["agent.status"] = [Busy("agent", why="overloaded")]
    house.world.before["agent.ready"] = [Busy("agent", why="overloaded")]
    operation = await house.order(OperationKind.RESTART)
    assert await house.run(operation) == "succeeded"
    assert house.world.times("agent.restart") == 1


async def test_a_restart_is_not_repeated_by_the_next_attempt(house: House) -> None:
    """The run dies after the restart; minutes later the next one finds a workload younger than the order."""
    operation = await house.order(OperationKind.RESTART)

    class Killed(BaseException):
        pass

    async def die(name: str) -> None:
        if name == "restart_workload:do:effect":
            raise Killed

    with pytest.raises(Killed):
        await house.run(operation, house.deps(boundary=die))
    house.world.uptime_s = 0.05
    await asyncio.sleep(0.1)
    async with house.db.write() as tx:
        await leases.revoke(tx, operation.server_id)
        await attempts.next_attempt(tx, operation.id)
    assert await house.run(operation) == "succeeded"
    assert house.world.times("agent.restart") == 1


async def test_a_restart_whose_answer_was_lost_is_looked_for(house: House) -> None:
    """Before the effect: it is made. After it: not again. A workload that is still ready says nothing."""
    for armed, expected in ((house.world.after, 1), (house.world.before, 2)):
        house.world.calls.clear()
        house.world.workload, house.world.uptime_s = WorkloadState.RUNNING, 5000.0
        armed["agent.restart"] = [AmbiguousEffect("agent", why="lost")]
        operation = await house.order(OperationKind.RESTART)
        assert await house.run(operation) == "succeeded"
        assert (house.world.times("agent.restart"), house.world.uptime_s) == (expected, 0.0)


async def test_a_start_whose_answer_was_lost_is_sent_again_unless_it_arrived(house: House) -> None:
    """Before the effect: waiting alone would wait until the deadline, a quarter of an hour. After it: the workload is ready."""
    for armed, expected in ((house.world.after, 1), (house.world.before, 2)):
        house.world.calls.clear()
        house.world.workload = WorkloadState.STOPPED
        armed["agent.start"] = [AmbiguousEffect("agent", why="lost")]
        assert await house.run(await house.order(OperationKind.START)) == "succeeded"
        assert house.world.times("agent.start") == expected


@pytest.mark.parametrize("kind", [OperationKind.START, OperationKind.RESTART])
async def test_what_its_agent_forgot_to_start_is_ordered_again(house: House, kind: OperationKind) -> None:
    """Accepted, and lost with the agent's process: it says that the workload is stopped and that nothing is under way."""
    house.world.forgets = 1
    assert await house.run(await house.order(kind)) == "succeeded"
    assert house.world.times(f"agent.{kind}") == 2


async def test_a_restart_that_was_refused_is_not_taken_for_done(house: House) -> None:
    """Ordered hours ago and retried now; the workload is younger than the order, but nothing of this one was ever sent."""
    operation = await house.order(OperationKind.RESTART)
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(started_at=tx.now - 3 * 3_600_000))
    house.world.workload, house.world.uptime_s = WorkloadState.RUNNING, 3600.0
    house.world.before["agent.restart"] = [Unreachable("agent", why="connection refused")]
    assert await house.run(operation) == "succeeded"
    assert house.world.times("agent.restart") == 2


async def test_a_developer_container_whose_start_was_not_answered_is_not_ended_again(house: House) -> None:
    house.world.workload = WorkloadState.RUNNING
    house.world.after["proxmox.start"] = [AmbiguousEffect("start", why="lost")]
    operation = await house.order(OperationKind.RESTART, await house.server(ctype=ContainerType.DEV))
    assert await house.run(operation) == "succeeded"
    assert (house.world.times("proxmox.shutdown"), house.world.times("proxmox.start")) == (1, 1)


@pytest.mark.parametrize("trouble", [Unauthorized("agent", why="401"), BadAnswer("agent", why="another identity"), Busy("agent", why="409")])
async def test_an_agent_that_refuses_to_stop_does_not_keep_its_server_from_being_deleted(house: House, trouble: Exception) -> None:
    """Its container ends next; what an agent answers is a customer's word."""
    house.world.workload = WorkloadState.RUNNING
    house.world.before["agent.stop"] = [trouble] * 1000
    operation = await house.order(OperationKind.DELETE)
    assert await house.run(operation) == "succeeded"


async def test_an_agent_that_never_stops_does_not_either(house: House) -> None:
    operation = await house.order(OperationKind.DELETE)

    async def go_on() -> None:
        house.world.workload = WorkloadState.RUNNING

    house.world.after["agent.stop"] = [go_on] * 1000
    assert await house.run(operation) == "succeeded"


async def _suspend(house: House, server_id: str, to: BillingState = BillingState.SUSPENDED) -> None:
    server = await house.present(server_id)
    async with house.db.write() as tx:
        if to is BillingState.ACTIVE:
            await accounts.resume(tx, server.customer_id, "test")
        else:
            await customers.set_billing(tx, server.customer_id, to, "test")


async def test_suspended_during_creation_it_is_finished_without_starting(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    await _suspend(house, operation.server_id)
    assert await house.run(operation) == "succeeded"
    assert (await house.present(operation.server_id)).state is ServerState.SUSPENDED
    assert not house.world.times("agent.start") and not house.world.registrations and not house.world.owners


@pytest.mark.parametrize("moment", ["publish_dns", "activate:do:begun", "last"])
async def test_resumed_before_the_end_it_is_started_after_all(house: House, moment: str) -> None:
    """Not undone for want of readiness, nor left behind as suspended by an account that is in good standing."""
    operation = await house.order(OperationKind.PROVISION)
    await _suspend(house, operation.server_id)

    async def boundary(name: str) -> None:
        if name == moment or (moment == "publish_dns" and name == "prepare_workload:do:done"):
            await _suspend(house, operation.server_id, BillingState.ACTIVE)

    deps = house.deps(boundary=boundary)
    if moment == "last":
        from flows.act.steps import final

        async def late() -> None:
            await _suspend(house, operation.server_id, BillingState.ACTIVE)

        class Late(final.Activate):
            async def prepare(self, ctx: object) -> None:
                await super().prepare(ctx)  # type: ignore[arg-type]
                await late()

        STEPS[StepName.ACTIVATE], kept = Late(), STEPS[StepName.ACTIVATE]  # type: ignore[index]
        try:
            assert await house.run(operation, deps) == "succeeded"
        finally:
            STEPS[StepName.ACTIVATE] = kept  # type: ignore[index]
    else:
        assert await house.run(operation, deps) == "succeeded"
    server = await house.present(operation.server_id)
    assert (server.state, server.edge) == (ServerState.ACTIVE, Edge.OPEN)
    assert house.world.times("agent.start") == 1 and server.name in house.world.registrations


@pytest.mark.parametrize("kind", [OperationKind.START, OperationKind.RESTART])
async def test_nothing_is_started_for_a_suspended_customer(house: House, kind: OperationKind) -> None:
    server = await house.server()
    house.world.containers[server.vmid].status = "stopped"
    operation = await house.order(kind, server)
    await _suspend(house, server.id)
    assert await house.run(operation) == "succeeded"
    assert house.world.containers[server.vmid].status == "stopped"
    assert not house.world.times("agent.start") + house.world.times("agent.restart")
    assert not await house.rows(select(t.observations).where(t.observations.c.ready.is_(True)))
    assert await house.state(operation) is OperationState.SUCCEEDED


class Locked(fakes.Proxmox):
    """Its first task of a kind ends on a lock; what becomes of a task belongs to its UPID, for good. ``end``: how waiting for it ends."""

    def __init__(self, world: fakes.World, kind: str, end: Exception, *, known: bool = True, running: int = 0) -> None:
        super().__init__(world)
        self.kind, self.end, self.known, self.running, self.poisoned = kind, end, known, running, ""

    async def _power(self, name: str, vmid: int, to: str) -> str:
        if name != self.kind or self.poisoned:
            return f"{await super()._power(name, vmid, to)}{self.w.times(f'proxmox.{name}')}"
        self.poisoned = f"UPID:pve1:1:1:1:vz{name}:{vmid}:zlh@pve!autopilot:"
        self.w.calls.append(f"proxmox.{name}")
        return self.poisoned

    async def wait(self, upid: str, deadline_s: float) -> TaskStatus:
        if upid == self.poisoned:
            raise self.end
        return await super().wait(upid, deadline_s)

    async def task(self, upid: str) -> TaskStatus:
        if upid == self.poisoned and not self.known:
            raise Unproven("task", why="no such task")
        return await super().task(upid)

    async def tasks_of(self, vmid: int) -> Sequence[TaskStatus]:
        self.running -= 1
        return [TaskStatus(self.poisoned, False, False)] if self.running >= 0 else []


ENDS = pytest.mark.parametrize(
    ("end", "known"), [(Busy("task", why="CT is locked (backup)"), True), (Unproven("task", why="no such task"), False)], ids=["locked", "unknown"]
)


@ENDS
async def test_a_start_whose_task_is_over_without_effect_is_ordered_again(
    house: House, monkeypatch: pytest.MonkeyPatch, end: Exception, known: bool
) -> None:
    """A backup's lock of a second, or a task that its node has forgotten, must not stand for ever between a server and its start."""

    async def yes(address: str) -> bool:
        return True

    monkeypatch.setattr("flows.act.steps.container._answers", yes)
    server = await house.server()
    house.world.containers[server.vmid].status = "stopped"
    operation = await house.order(OperationKind.START, server)
    deps = replace(house.deps(), proxmox=Locked(house.world, "start", end, known=known, running=2))
    assert await house.run(operation, deps) == "succeeded"
    assert house.world.times("proxmox.start") == 2


@ENDS
async def test_a_deletion_goes_on_after_a_stop_that_is_over_without_effect(house: House, end: Exception, known: bool) -> None:
    operation = await house.order(OperationKind.DELETE)
    assert await house.run(operation, replace(house.deps(), proxmox=Locked(house.world, "stop", end, known=known))) == "succeeded"
    assert house.world.times("proxmox.stop") == 2 and not house.world.containers


class Fence(fakes.Proxy):
    """The lab bridge's own memory of lease tokens."""

    def __init__(self, world: fakes.World, bridge: Backends) -> None:
        super().__init__(world)
        self.bridge = bridge

    async def deregister(self, name: str, token: int) -> None:
        await super().deregister(name, token)
        self.bridge.remove(name, token)


async def test_an_undo_raises_the_bridges_fence_though_nothing_is_listed_yet(house: House) -> None:
    """The run was frozen before its PUT; its successor undoes; then the PUT arrives."""
    bridge = Backends()
    operation = await house.order(OperationKind.PROVISION)
    server = await house.present(operation.server_id)
    house.world.before["register"] = [TaskFailed("register", why="no")]
    assert await house.run(operation, replace(house.deps(), proxy=Fence(house.world, bridge))) == "failed"
    with pytest.raises(Superseded):
        bridge.put(Backend(name=server.name, address=server.address, port=server.game_port, lease_token=1))


async def test_no_game_is_prepared_without_the_proxys_secret(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    deps = house.deps()
    ansible = deps.settings.ansible.model_copy(update={"forwarding_secret": SecretStr("")})
    assert await house.run(operation, replace(deps, settings=deps.settings.model_copy(update={"ansible": ansible}))) == "failed"
    assert "ZLH_ANSIBLE__FORWARDING_SECRET" in str((await house.operation(operation.id)).error)
    assert not house.world.times("preseed_fabric.yml")


def test_every_flavor_has_its_own_time_to_become_ready() -> None:
    assert set(READY_S) == GAMES | ENVIRONMENTS.keys()
    timing = TimingSettings()
    assert min(READY_S.values()) >= timing.lease_s + timing.sweep_s, "a run that died in it would be given up before it could be resumed"


@pytest.mark.parametrize("flavor", ["fabric", "vanilla"])
async def test_the_deadline_of_a_start_is_its_flavors(house: House, flavor: str) -> None:
    """In the journal, where the sweep reads it, as much as in the waiting itself."""
    server = await house.server(flavor=flavor)
    house.world.before["agent.start"] = [TaskFailed("agent", why="no")] * 3
    operation = await house.order(OperationKind.START, server)
    assert await house.run(operation, house.deps(step_factor=0.01)) == "retrying"
    row = next(r for r in await house.rows(select(t.journal)) if r.step == "start_workload")
    assert row.deadline_at - row.started_at == READY_S[flavor] * 10


@pytest.mark.parametrize("what", ["another's", "gone"])
async def test_a_container_that_changed_hands_during_its_stop_is_not_destroyed(house: House, what: str) -> None:
    """A stop may last: what was ours before it may be somebody else's restore under the same number after it."""
    operation = await house.order(OperationKind.DELETE)
    server = await house.present(operation.server_id)

    async def change() -> None:
        if what == "gone":
            del house.world.containers[server.vmid]
        else:
            house.world.containers[server.vmid] = Container("stopped", tags=frozenset({"somebody"}))

    house.world.after["proxmox.stop"] = [change]
    assert await house.run(operation) == ("succeeded" if what == "gone" else "cleanup_required")
    assert house.world.times("destroy") == 0


async def test_a_deployment_leaves_the_workload_and_the_edge_as_they_are(house: House) -> None:
    """Also where nothing runs: a stopped server gets its agent too, and stays stopped."""
    for workload in (WorkloadState.RUNNING, WorkloadState.STOPPED):
        house.world.calls.clear()
        house.world.workload = workload
        operation = await house.order(OperationKind.DEPLOY_AGENT, await house.server(edge=Edge.WITHDRAWN))
        assert await house.run(operation) == "succeeded"
        assert house.world.times("deploy_agent.yml") == 1, "although this very version answers already: its token or certificate may be old"
        assert not [call for call in house.world.calls if call.startswith(("agent.st", "agent.re", "proxy.", "dns."))]
        async with house.db.read() as tx:
            server = await servers.get(tx, operation.server_id)
        assert server is not None and server.edge is Edge.WITHDRAWN


async def test_a_deployment_that_fails_has_no_undo(house: House) -> None:
    house.world.before["deploy_agent.yml"] = [TaskFailed("play", why="the agent did not come up")]
    operation = await house.order(OperationKind.DEPLOY_AGENT)
    await house.run(operation)
    assert (await house.operation(operation.id)).undo_failures == 0
    assert house.world.containers


async def test_an_agent_that_answers_does_not_prove_that_its_play_was_run(house: House) -> None:
    """The first try meets another play on the target. The old agent of the same version answers all the while, with its old certificate."""
    house.world.before["deploy_agent.yml"] = [Busy("play", why="another play holds the lock on the target", retry_after=0.01)]
    operation = await house.order(OperationKind.DEPLOY_AGENT)
    assert await house.run(operation) == "succeeded"
    assert house.world.times("deploy_agent.yml") == 2


async def test_a_registration_that_stands_is_sent_again_under_the_newer_token(house: House) -> None:
    """Somebody may stand still before its deregistration: only a newer token at the bridge keeps that out."""
    server = await house.server(edge=Edge.OPEN)
    house.world.workload = WorkloadState.RUNNING
    house.world.registrations[server.name] = Registration(server.name, server.address, server.game_port)
    for sent in (1, 2):
        assert await edge.register(house.deps(), server, sent) is False
        assert house.world.times("register") == sent
    house.world.registrations.clear()
    assert await edge.register(house.deps(), server, 3) is True
    house.world.workload = WorkloadState.STOPPED
    with pytest.raises(Unproven):
        await edge.register(house.deps(), server, 4)
    assert house.world.times("register") == 3
