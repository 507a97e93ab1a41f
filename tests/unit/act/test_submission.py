"""The sweep as the safety net of the submitter: ``repaired`` only once the engine has the run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest
from sqlalchemy import select

from flows.act import repair as repairing
from flows.act.deps import Deps
from flows.act.repairs import submission
from flows.domain.finding import Action, Check, Finding, Outcome, Repair
from flows.domain.operation import AttemptState, Operation, OperationKind, engine_key
from flows.domain.sources import EngineRun
from flows.errors import AmbiguousEffect, AutomationError, NotFound, Unproven, Unreachable
from flows.state import attempts, control, epochs, repairs
from flows.state import tables as t
from tests.unit.act import fakes
from tests.unit.act.conftest import House


class Engine(fakes.Engine):
    """Remembers what it was asked for, once per key."""

    async def submit(self, deployment: str, key: str, parameters: Mapping[str, object], queue: str) -> str:
        def effect() -> str:
            assert parameters == {"operation_id": key.split(":")[1], "attempt": int(key.split(":")[2]), "generation": int(key.split(":")[0])}
            return self.w.runs.setdefault(key, EngineRun(f"run of {key}", key, "scheduled", finished=False)).id

        return str(await self.w.hit("engine.submit", effect))


async def _carry_out(house: House, operation: Operation, action: Action = Action.SUBMIT_ATTEMPT, left_s: float = 40.0) -> Outcome | None:
    deps: Deps = replace(house.deps(), engine=Engine(house.world))
    epoch = await epochs.begin(deps.database, deps.holder, 30_000)
    assert epoch is not None
    finding = Finding(
        Check.OPERATION_UNSUBMITTED,
        f"operation:{operation.id}",
        "unsubmitted",
        1,
        action,
        operation.server_id,
        operation.id,
        evidence={"attempt": operation.attempt},
    )
    try:
        return await repairing.carry_out(deps, Repair(finding, action), epoch, left_s)
    finally:
        await epochs.end(deps.database, epoch, deps.holder)


async def _key(house: House, operation: Operation, attempt: int) -> str:
    async with house.db.read() as tx:
        return engine_key(await control.generation(tx), operation.id, attempt)


async def _recorded(house: House) -> list[tuple[str, str]]:
    return [(r.outcome, r.detail) for r in await house.rows(select(t.repairs.c.outcome, t.repairs.c.detail).order_by(t.repairs.c.intent_at))]


async def test_an_attempt_that_the_engine_never_saw_is_submitted_once(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    assert await _carry_out(house, operation) is Outcome.REPAIRED
    assert list(house.world.runs) == [await _key(house, operation, 1)]
    found = await house.operation(operation.id)
    assert (found.attempt, found.attempt_state) == (1, AttemptState.SUBMITTED)
    assert await _carry_out(house, operation) is Outcome.ALREADY_HEALED
    assert house.world.times("engine.submit") == 1


async def test_one_that_a_dead_submitter_holds_is_submitted_all_the_same(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    async with house.db.write() as tx:
        await attempts.claim_for_submission(tx, "dead", tx.now + 3_600_000, 1)
    assert await _carry_out(house, operation) is Outcome.REPAIRED


async def test_what_the_engine_lost_is_submitted_as_the_next_attempt(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    first = await _key(house, operation, 1)
    house.world.runs[first] = EngineRun("gone", first, "crashed", finished=True)
    assert await _carry_out(house, operation, Action.NEXT_ATTEMPT) is Outcome.REPAIRED
    assert await _key(house, operation, 2) in house.world.runs
    found = await house.operation(operation.id)
    assert (found.attempt, found.attempt_state) == (2, AttemptState.SUBMITTED)


async def test_a_run_that_appeared_since_is_left_alone(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    key = await _key(house, operation, 1)
    house.world.runs[key] = EngineRun("late", key, "running", finished=False)
    assert await _carry_out(house, operation) is Outcome.ALREADY_HEALED
    assert house.world.times("engine.submit") == 0


async def test_an_attempt_that_a_run_claimed_meanwhile_is_left_alone(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)

    async def claim() -> None:
        async with house.db.write() as tx:
            await attempts.claim_run(tx, operation.id, 1, await control.generation(tx), "run", 60_000)

    house.world.after["engine.runs"] = [claim]
    assert await _carry_out(house, operation) is Outcome.ALREADY_HEALED
    assert (await house.operation(operation.id)).attempt_state is AttemptState.CLAIMED


@pytest.mark.parametrize("error", [AmbiguousEffect("engine", why="lost"), Unreachable("engine", why="lost")])
async def test_a_lost_answer_is_looked_for(house: House, error: AutomationError) -> None:
    operation = await house.order(OperationKind.PROVISION)
    house.world.after["engine.submit"] = [error]
    assert await _carry_out(house, operation) is Outcome.REPAIRED


async def test_what_did_not_arrive_has_failed_and_goes_back_to_the_submitters(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    house.world.before["engine.submit"] = [Unreachable("engine", why="down")]
    assert await _carry_out(house, operation) is Outcome.FAILED
    assert (await house.operation(operation.id)).attempt_state is AttemptState.UNCLAIMED
    assert await _carry_out(house, operation) is Outcome.REPAIRED


async def test_what_cannot_be_looked_at_is_unverified(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    house.world.after["engine.submit"] = [AmbiguousEffect("engine", why="lost")]
    house.world.before["engine.runs"] = [None, Unproven("engine", why="no end of its list")]
    assert await _carry_out(house, operation) is Outcome.UNVERIFIED
    [(outcome, detail)] = await _recorded(house)
    assert outcome == "unverified" and "lost" in detail and "no end of its list" in detail


async def test_a_refusal_says_why_and_gives_the_attempt_back(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    house.world.before["engine.submit"] = [NotFound("deployment provision", remedy="zlh up")]
    assert await _carry_out(house, operation) is Outcome.FAILED
    assert await _recorded(house) == [("failed", "deployment provision · zlh up")]
    assert (await house.operation(operation.id)).attempt_state is AttemptState.UNCLAIMED


async def test_an_engine_that_hangs_costs_no_more_than_its_limit(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "LIMIT_S", 0.2)
    operation = await house.order(OperationKind.PROVISION)

    async def hang() -> None:
        await asyncio.sleep(3600)

    house.world.before["engine.submit"] = [hang]
    async with asyncio.timeout(5):
        assert await _carry_out(house, operation) is Outcome.UNVERIFIED


async def test_without_time_left_it_is_not_begun(house: House) -> None:
    operation = await house.order(OperationKind.PROVISION)
    assert await _carry_out(house, operation, left_s=submission.LIMIT_S / 2) is None
    assert await _recorded(house) == []


async def test_an_intent_of_a_sweep_that_died_does_not_hold_its_server(house: House) -> None:
    """While it were open, no other repair of the server would begin, and the operation still waits."""
    operation = await house.order(OperationKind.PROVISION)

    async def die() -> None:
        raise asyncio.CancelledError

    house.world.before["engine.submit"] = [die]
    with pytest.raises(asyncio.CancelledError):
        await _carry_out(house, operation)
    async with house.db.write() as tx:
        assert [r.subject for r in await repairs.close_abandoned(tx)] == [f"operation:{operation.id}"]
    assert await _carry_out(house, operation) is Outcome.REPAIRED
