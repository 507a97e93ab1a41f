"""One step: tried again with its proof first, bounded by its deadline, stopped on request, never run again once done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from flows.act.context import Context
from flows.act.steps.base import Effect, Step
from flows.act.steps.registry import STEPS
from flows.act.tasks import seen_through
from flows.domain.operation import OperationKind, OperationState, StepName
from flows.errors import AmbiguousEffect, TaskFailed, Temporary
from flows.state import attempts, control, leases, operations
from flows.state import tables as t
from tests.unit.act.conftest import House
from tests.unit.act.fakes import Container


class Trust(Step):
    """In place of the real one; ``script``: what each call of ``do`` raises."""

    name = StepName.TRUST
    deadline_s = 300.0
    effect = Effect.HELD_OPEN

    def __init__(self, *script: BaseException | float | None, done: bool = False) -> None:
        self.script, self.done, self.asked = list(script), done, [""][:0]

    async def already_done(self, ctx: Context) -> bool:
        self.asked.append("proof")
        return self.done

    async def do(self, ctx: Context) -> None:
        self.asked.append("do again" if ctx.again else "do")
        turn = self.script.pop(0) if self.script else None
        if isinstance(turn, float):
            await asyncio.sleep(turn)
        elif turn is not None:
            raise turn


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Any:
    def replace(step: Step) -> Step:
        steps: Mapping[StepName, Step] = dict(STEPS) | {step.name: step}
        monkeypatch.setattr("flows.act.executor.STEPS", steps)
        return step

    return replace


async def test_the_proof_is_asked_from_the_second_try_on(house: House, put: Any) -> None:
    step = put(Trust(Temporary("lost"), Temporary("lost")))
    assert await house.run(await house.order(OperationKind.PROVISION)) == "succeeded"
    assert step.asked == ["do", "proof", "do", "proof", "do"]


async def test_what_is_proven_done_is_not_tried_again(house: House, put: Any) -> None:
    step = put(Trust(Temporary("lost"), done=True))
    assert await house.run(await house.order(OperationKind.PROVISION)) == "succeeded"
    assert step.asked == ["do", "proof"]


async def test_a_permanent_failure_is_not_tried_again(house: House, put: Any) -> None:
    step = put(Trust(TaskFailed("no")))
    assert await house.run(await house.order(OperationKind.PROVISION)) == "failed"
    assert step.asked == ["do"]


@pytest.mark.parametrize("turn", [30.0, Temporary("never", retry_after=30.0)])
async def test_the_deadline_ends_a_step_that_hangs_or_waits(house: House, put: Any, turn: Any) -> None:
    put(Trust(turn)).deadline_s = 10.0  # a fiftieth of it
    operation = await house.order(OperationKind.PROVISION)
    async with asyncio.timeout(10):
        assert await house.run(operation) == "failed"
    assert "not done in 0 s" in str((await house.operation(operation.id)).error)


async def test_a_request_to_cancel_ends_a_step_in_its_middle(house: House, put: Any) -> None:
    put(Trust(30.0))
    operation = await house.order(OperationKind.PROVISION)

    async def ask() -> None:
        while (await house.operation(operation.id)).step is not StepName.TRUST:
            await asyncio.sleep(0.01)
        async with house.db.write() as tx:
            await operations.request_cancel(tx, operation.id, "test")

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(10):
        assert await house.run(operation) == "cancelled"
    await asking
    assert await house.state(operation) is OperationState.CANCELLED


async def test_a_completed_step_is_never_run_again_and_an_interrupted_one_asks_first(house: House, put: Any) -> None:
    class Killed(BaseException):
        pass

    async def die(name: str) -> None:
        if name == "trust:do:effect":
            raise Killed

    step = put(Trust(done=True))
    operation = await house.order(OperationKind.PROVISION)
    with pytest.raises(Killed):
        await house.run(operation, house.deps(boundary=die))
    async with house.db.write() as tx:
        await leases.revoke(tx, operation.server_id)
        await attempts.next_attempt(tx, operation.id)
    assert await house.run(operation) == "succeeded"
    assert step.asked == ["do", "proof"]
    assert house.world.times("clone") == house.world.times("configure") == 1
    runs = {r.step: r.runs for r in await house.rows(select(t.journal.c.step, t.journal.c.runs))}
    assert runs["create_container"] == 1 and runs["trust"] == 2


async def test_a_run_that_lost_its_lease_stops_in_the_middle_of_a_step_and_undoes_nothing(house: House, put: Any) -> None:
    put(Trust(30.0))
    operation = await house.order(OperationKind.PROVISION)

    async def revoke() -> None:
        while (await house.operation(operation.id)).step is not StepName.TRUST:
            await asyncio.sleep(0.01)
        async with house.db.write() as tx:
            await leases.revoke(tx, operation.server_id)

    revoking = asyncio.create_task(revoke())
    async with asyncio.timeout(10):
        assert await house.run(operation) == "superseded"
    await revoking
    assert house.world.containers and await house.state(operation) is OperationState.RUNNING
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("step", "heartbeat"))]


async def test_a_call_on_its_way_is_seen_through_before_a_cancellation_passes() -> None:
    arrived: list[str] = []

    async def call() -> None:
        await asyncio.sleep(0.05)
        arrived.append("effect")

    caller = asyncio.create_task(seen_through(call(), 5.0))
    for _ in range(2):  # a second cancellation is no reason to give up either
        await asyncio.sleep(0.01)
        caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert arrived == ["effect"]


async def test_a_call_without_end_is_waited_for_no_longer_than_its_limit() -> None:
    caller = asyncio.create_task(seen_through(asyncio.sleep(3600), 0.02))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(caller, 5.0)


async def test_a_clone_that_was_on_its_way_when_somebody_cancelled_is_undone(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)

    async def cancelled_meanwhile() -> None:
        async with house.db.write() as tx:
            await operations.request_cancel(tx, operation.id, "test")
        await asyncio.sleep(0.5)  # longer than it takes to notice

    house.world.before["clone"] = [cancelled_meanwhile]
    assert await house.run(operation) == "cancelled"
    assert house.world.times("clone") == 1 and not house.world.containers
    clone = next(r for r in await house.rows(select(t.journal)) if (r.step, r.direction) == ("create_container", "do"))
    assert ":vzclone:" in clone.upid


async def test_nothing_found_proves_nothing_while_a_lost_order_may_still_arrive(house: House) -> None:
    """The answer to the clone is lost, the step fails, and the clone lands a moment after the undo's first look."""
    operation = await house.order(OperationKind.PROVISION)
    server = await house.present(operation.server_id)
    late: list[asyncio.Task[None]] = []

    async def land() -> None:
        await asyncio.sleep(0.5)
        house.world.containers[server.vmid] = Container(description=f"zlh-op-{operation.id}")

    async def lost() -> None:
        async with house.db.write() as tx:
            await operations.request_cancel(tx, operation.id, "test")
        late.append(asyncio.create_task(land()))
        raise AmbiguousEffect("clone", why="lost")

    house.world.before["clone"] = [lost]
    deps = house.deps()
    timing = {"proxmox": {"timeout_s": 0.8}, "proxy": {"timeout_s": 0.1}, "dns": {"timeout_s": 0.1}, "agent": {"timeout_s": 0.1}}
    settings = deps.settings.model_copy(update={k: getattr(deps.settings, k).model_copy(update=v) for k, v in timing.items()})
    assert await house.run(operation, replace(deps, settings=settings)) == "cancelled"
    await late[0]
    assert not house.world.containers


async def test_a_run_of_an_older_generation_stops_before_its_next_effect(house: House, put: Any) -> None:
    """A database was restored under it: its lease and token are in there, what came after them is not."""
    operation = await house.order(OperationKind.PROVISION)

    async def at(name: str) -> None:
        if name == "configure:do:begun":
            async with house.db.write() as tx:
                await control.raise_generation(tx, "test")

    await house.run(operation, house.deps(boundary=at))
    assert house.world.times("clone") == 1 and not house.world.times("configure")
