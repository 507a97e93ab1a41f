"""A whole sweep over a database and a world in memory: one bad row must not stop the rest of its plan."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping

import pytest
from sqlalchemy import select, update

from flows.act import repair as repairing
from flows.act.deps import Deps
from flows.act.repairs import operations as operation_repairs
from flows.act.sweep import SweepResult, sweep
from flows.decide.plan import decide
from flows.domain.finding import Action, Check, Finding, Outcome, Repair
from flows.domain.operation import Operation, OperationKind, OperationState, engine_key
from flows.domain.sources import EngineRun
from flows.errors import AutomationError, Busy, Conflict, Fenced, NotFound, Unreachable
from flows.state import attempts, control, epochs, fleet
from flows.state import tables as t
from flows.state.database import Tx
from tests.support import snapshots
from tests.support.controller import NoGate
from tests.unit.act import fakes
from tests.unit.act.conftest import House


async def _sweep(house: House, deps: Deps | None = None) -> SweepResult:
    return await sweep(deps or house.deps(), NoGate(), house.said.append)


async def _planned(house: House, action: Action) -> Repair:
    """What deciding orders for the database as it is."""
    async with house.db.read() as tx:
        known, now = await fleet.load(tx), tx.now
    plan = decide(dataclasses.replace(snapshots.snapshot({}), fleet=known, now=now), snapshots.POLICY)
    return next(r for r in plan.repairs if r.action is action)


async def _carry_out(house: House, repair: Repair, deps: Deps | None = None) -> Outcome | None:
    deps = deps or house.deps()
    epoch = await epochs.begin(deps.database, deps.holder, 30_000)
    assert epoch is not None
    return await repairing.carry_out(deps, repair, epoch, 40.0)


async def test_a_deletion_that_no_run_took_is_tried_again_later(house: House) -> None:
    operation = await house.order(OperationKind.DELETE)
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(deadline_at=0))
    result = await _sweep(house)
    assert dict(result.outcomes) == {f"stuck_provisioning/operation:{operation.id}": "repaired"}
    found = await house.operation(operation.id)
    assert (found.state, found.undo_failures) == (OperationState.CLEANUP_REQUIRED, 1)


@pytest.mark.parametrize("error", [Conflict("row", why="no"), Fenced("attempt", why="a newer one"), Busy("row"), Unreachable("row"), NotFound("row")])
async def test_one_bad_row_does_not_stop_the_plan(house: House, monkeypatch: pytest.MonkeyPatch, error: AutomationError) -> None:
    bad, good = [await house.order(OperationKind.START) for _ in range(2)]
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(deadline_at=0))
    order = operation_repairs.order

    async def spoilt(deps: Deps, tx: Tx, finding: Finding, action: Action) -> bool:
        if finding.operation_id == bad.id:
            raise error
        return await order(deps, tx, finding, action)

    monkeypatch.setattr(operation_repairs, "order", spoilt)
    result = await _sweep(house)
    outcomes: Mapping[str, str] = dict(result.outcomes)
    assert (outcomes[f"stuck_provisioning/operation:{bad.id}"], outcomes[f"stuck_provisioning/operation:{good.id}"]) == ("failed", "repaired")
    assert await house.state(good) is OperationState.FAILED
    rows = await house.rows(select(t.repairs.c.outcome, t.repairs.c.detail).where(t.repairs.c.subject == f"operation:{bad.id}"))
    assert [(r.outcome, r.detail) for r in rows] == [("failed", str(error))]


async def test_a_lease_that_passed_on_ends_its_repair_and_not_the_sweep(house: House) -> None:
    """The lease was lost between effect and outcome: another's server now, but the sweep is still ours."""
    server = await house.server()

    async def lose() -> None:
        async with house.db.write() as tx:
            await tx.execute(update(t.leases).values(token=t.leases.c.token + 1, holder="another"))

    house.world.after["publish"] = [lose]
    finding = fakes.finding(server)
    assert await _carry_out(house, Repair(finding, Action.PUBLISH_DNS)) is Outcome.FENCED
    assert [r.outcome for r in await house.rows(select(t.repairs.c.outcome))] == ["fenced"]


async def test_a_superseded_epoch_ends_the_sweep(house: House) -> None:
    operation = await house.order(OperationKind.START)
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(deadline_at=0))
    repair = await _planned(house, Action.FAIL_STUCK)
    deps = house.deps()
    epoch = await epochs.begin(deps.database, deps.holder, 30_000)
    assert epoch is not None and repair.finding.check is Check.STUCK_PROVISIONING
    with pytest.raises(Fenced):
        await repairing.carry_out(deps, repair, epoch - 1, 40.0)
    assert await house.state(operation) is OperationState.QUEUED
    assert not await house.rows(select(t.repairs))


@pytest.mark.parametrize("kind", [OperationKind.DELETE, OperationKind.PROVISION])
async def test_a_clean_up_begins_a_phase_of_its_own(house: House, kind: OperationKind) -> None:
    """With the old deadline, or the old count of claims, it would be given up before a run could take it, and count as failed once more."""
    operation = await house.order(kind)
    async with house.db.write() as tx:
        await attempts.end(tx, operation.id, 1, "cleanup_required")
        long_ago = {"deadline_at": tx.now - 1_000, "progress_at": tx.now - 86_400_000, "claimed": 3, "undo_failures": 1}
        await tx.execute(update(t.operations).values(state="cleanup_required", **long_ago))
    result = await _sweep(house)
    assert dict(result.outcomes) == {f"cleanup_required/operation:{operation.id}": "repaired"}
    found = await house.operation(operation.id)
    assert (found.attempt, found.claimed, found.undo_failures) == (2, 0, 1)
    assert (await _sweep(house)).outcome == "clean"
    assert await house.run(operation) in ("succeeded", "failed")


@pytest.mark.parametrize(
    "moved",
    [{"step": "trust"}, {"state": "compensating", "claimed": 0}, {"step_deadline_at": t.operations.c.step_deadline_at + 600_000}, {"attempt": 2}],
)
async def test_an_operation_that_moved_on_since_it_was_looked_at_is_not_stuck(house: House, moved: dict[str, object]) -> None:
    """The same step may have begun anew: in another phase, or under a deadline that still lies ahead."""
    operation = await house.order(OperationKind.PROVISION)
    async with house.db.write() as tx:
        await attempts.claim_run(tx, operation.id, 1, await control.generation(tx), "run", 60_000)
        await tx.execute(update(t.operations).values(step="configure", step_deadline_at=tx.now - 1, attempt_at=tx.now - 1_000))
    repair = await _planned(house, Action.FAIL_STUCK)
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(moved))
    before = await house.operation(operation.id)
    assert await _carry_out(house, repair) is Outcome.ALREADY_HEALED
    assert await house.operation(operation.id) == before


async def _stuck(house: House) -> tuple[Operation, Repair]:
    operation = await house.order(OperationKind.START)
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(deadline_at=0))
        key = engine_key(await control.generation(tx), operation.id, 1)
    house.world.runs[key] = EngineRun("run", key, "running", finished=False)
    return operation, await _planned(house, Action.FAIL_STUCK)


async def test_an_operation_repair_begins_only_while_its_calls_fit(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairing, "CANCEL_S", 0.1)
    operation, repair = await _stuck(house)
    deps = house.deps()
    epoch = await epochs.begin(deps.database, deps.holder, 30_000)
    assert epoch is not None
    assert await repairing.carry_out(deps, repair, epoch, repairing.END_RUN_S / 2) is None
    assert await house.state(operation) is OperationState.QUEUED
    assert await repairing.carry_out(deps, repair, epoch, 40.0) is Outcome.REPAIRED
    assert house.world.times("engine.give_up") == 1


async def test_the_run_of_a_stuck_operation_is_cancelled_and_its_processes_with_it(house: House) -> None:
    """To declare it crashed would free its slot and end nothing."""
    _, repair = await _stuck(house)

    async def worker() -> None:
        house.world.runs = {key: dataclasses.replace(run, state="cancelled", finished=True) for key, run in house.world.runs.items()}

    house.world.after["engine.cancel"] = [worker]
    assert await _carry_out(house, repair) is Outcome.REPAIRED
    assert (house.world.times("engine.cancel"), house.world.times("engine.give_up")) == (1, 0)


@pytest.mark.parametrize("error", [None, Conflict("engine", why="REJECT"), Unreachable("engine")])
async def test_where_no_worker_ends_it_the_run_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch, error: AutomationError | None) -> None:
    monkeypatch.setattr(repairing, "CANCEL_S", 0.1)
    _, repair = await _stuck(house)
    house.world.before["engine.cancel"] = [error]
    assert await _carry_out(house, repair) is Outcome.REPAIRED
    assert (house.world.times("engine.cancel"), house.world.times("engine.give_up")) == (1, 1)


@pytest.mark.parametrize("call", ["engine.runs", "engine.cancel", "engine.give_up"])
async def test_an_engine_that_hangs_does_not_hold_up_the_sweep(house: House, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(repairing, "END_RUN_S", 0.1)
    monkeypatch.setattr(repairing, "CANCEL_S", 0.1)

    async def hang() -> None:
        await asyncio.sleep(3600)

    operation, repair = await _stuck(house)
    house.world.before[call] = [hang]
    async with asyncio.timeout(5):
        assert await _carry_out(house, repair) is Outcome.REPAIRED
    assert await house.state(operation) is OperationState.FAILED


async def test_out_of_time_under_a_newer_epoch_is_superseded(house: House) -> None:
    async def newer() -> None:
        async with house.db.write() as tx:
            await tx.execute(update(t.epochs).values(epoch=t.epochs.c.epoch + 1, holder="other"))
        await asyncio.sleep(5)

    house.world.before["view"] = [newer]
    result = await _sweep(house, house.deps(sweep_limit_s=0.3, epoch_renew_s=5.0))
    assert result.outcome == "superseded"
