"""The submitter: every attempt reaches the engine once, whatever becomes of the engine's answers or of the submitter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import structlog

from flows.domain.operation import AttemptState, OperationKind
from flows.domain.sources import EngineRun
from flows.errors import Busy, NotFound, Unreachable
from flows.report import dispatch
from flows.report.dispatch import Submitter
from flows.settings import Settings
from flows.state import attempts, operations
from flows.state.database import Database
from tests.unit.report.support import Clock, FakeNotifier, Killed, Rows, until


class FakeEngine:
    """Idempotent by key, like the real one. The script says what happens to the next answers."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.calls: list[tuple[str, str, Mapping[str, object], str]] = []
        self.runs_by_key: dict[str, str] = {}

    async def submit(self, deployment: str, key: str, parameters: Mapping[str, object], queue: str) -> str:
        self.calls.append((deployment, key, parameters, queue))
        answer = self.script.pop(0) if self.script else None
        if isinstance(answer, BaseException):
            raise answer
        run = self.runs_by_key.setdefault(key, f"run-{len(self.runs_by_key) + 1}")
        if callable(answer):  # the engine has it; the answer is lost
            raise answer()
        return run

    async def runs(self, keys: Sequence[str]) -> Mapping[str, EngineRun]:
        raise AssertionError

    async def cancel(self, run_id: str) -> None:
        raise AssertionError

    async def give_up(self, run_id: str, reason: str) -> None:
        raise AssertionError


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def submitter(db: Database, engine: FakeEngine, settings: Settings) -> Submitter:
    return Submitter(db, engine, settings, "s1")


async def order(db: Database, rows: Rows, kind: OperationKind = OperationKind.PROVISION) -> str:
    async with db.write() as tx:
        return (await rows.operation(tx, kind=kind)).id


async def state(db: Database, operation_id: str) -> AttemptState:
    async with db.read() as tx:
        operation = await operations.get(tx, operation_id)
    assert operation is not None
    return operation.attempt_state


async def test_an_order_reaches_the_engine_under_its_own_key(submitter: Submitter, engine: FakeEngine, db: Database, rows: Rows) -> None:
    operation_id = await order(db, rows)
    assert await submitter.submit() == 1
    assert await submitter.submit() == 0
    parameters = {"operation_id": operation_id, "attempt": 1, "generation": 7}
    assert engine.calls == [("provision", f"7:{operation_id}:1", parameters, "provisioning")]
    assert await state(db, operation_id) is AttemptState.SUBMITTED
    async with db.read() as tx:
        assert [row.run_id for row in await attempts.list_(tx, operation_id)] == ["run-1"]


@pytest.mark.parametrize(("kind", "deployment"), [(OperationKind.DELETE, "deprovision"), (OperationKind.RESTART, "operate")])
async def test_each_kind_has_its_deployment(
    submitter: Submitter, engine: FakeEngine, db: Database, rows: Rows, kind: OperationKind, deployment: str
) -> None:
    await order(db, rows, kind)
    await submitter.submit()
    assert engine.calls[0][0] == deployment


async def test_a_refusal_leaves_the_attempt_unclaimed(submitter: Submitter, engine: FakeEngine, db: Database, rows: Rows) -> None:
    operation_id = await order(db, rows)
    engine.script = [Busy("prefect")]
    with pytest.raises(Busy):
        await submitter.submit()
    assert await state(db, operation_id) is AttemptState.UNCLAIMED
    assert await submitter.submit() == 1


async def test_one_that_is_refused_does_not_hold_up_the_other(submitter: Submitter, engine: FakeEngine, db: Database, rows: Rows) -> None:
    refused, taken = await order(db, rows), await order(db, rows)
    engine.script = [NotFound("deployment provision")]
    assert await submitter.submit() == 1
    assert (await state(db, refused), await state(db, taken)) == (AttemptState.UNCLAIMED, AttemptState.SUBMITTED)


async def test_a_lost_answer_is_asked_again_under_the_same_key(
    submitter: Submitter, engine: FakeEngine, db: Database, rows: Rows, clock: Clock
) -> None:
    operation_id = await order(db, rows)
    engine.script = [lambda: Unreachable("prefect")]
    assert await submitter.submit() == 0
    assert await state(db, operation_id) is AttemptState.SUBMITTING
    assert await submitter.submit() == 0
    assert len(engine.calls) == 1
    clock.advance(5_200)
    assert await submitter.submit() == 1
    assert len(engine.runs_by_key) == 1
    assert await state(db, operation_id) is AttemptState.SUBMITTED


async def test_no_answer_in_time_counts_as_lost(
    submitter: Submitter, engine: FakeEngine, db: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_GRACE_S", 0.0)

    async def hang(*_: object) -> str:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(engine, "submit", hang)
    operation_id = await order(db, rows)
    assert await submitter.submit() == 0
    assert await state(db, operation_id) is AttemptState.SUBMITTING


@pytest.mark.parametrize("engine_has_it", [False, True])
async def test_death_in_mid_submission(
    submitter: Submitter, engine: FakeEngine, db: Database, rows: Rows, settings: Settings, clock: Clock, engine_has_it: bool
) -> None:
    operation_id = await order(db, rows)
    engine.script = [(lambda: Killed()) if engine_has_it else Killed()]
    with pytest.raises(Killed):
        await submitter.submit()
    heir = Submitter(db, engine, settings, "s2")
    assert await heir.submit() == 0
    clock.advance(5_200)
    assert await heir.submit() == 1
    assert len(engine.runs_by_key) == 1
    assert await state(db, operation_id) is AttemptState.SUBMITTED


async def test_a_run_that_is_faster_than_our_note_keeps_its_claim(
    submitter: Submitter, engine: FakeEngine, db: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation_id = await order(db, rows)
    submit = engine.submit

    async def fast(deployment: str, key: str, parameters: Mapping[str, object], queue: str) -> str:
        run = await submit(deployment, key, parameters, queue)
        async with db.write() as tx:
            await attempts.claim_run(tx, operation_id, 1, 7, "run", 60_000)
        return run

    monkeypatch.setattr(engine, "submit", fast)
    assert await submitter.submit() == 1
    assert await state(db, operation_id) is AttemptState.CLAIMED


async def test_a_refusal_after_the_run_began_changes_nothing(
    submitter: Submitter, engine: FakeEngine, db: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation_id = await order(db, rows)

    async def strange(*_: object) -> str:
        async with db.write() as tx:
            await attempts.claim_run(tx, operation_id, 1, 7, "run", 60_000)
        raise Busy("prefect")

    monkeypatch.setattr(engine, "submit", strange)
    with pytest.raises(Busy):
        await submitter.submit()
    assert await state(db, operation_id) is AttemptState.CLAIMED


async def test_many_submitters_submit_each_attempt_once(
    open_db: Callable[..., Database], db: Database, engine: FakeEngine, rows: Rows, settings: Settings
) -> None:
    for _ in range(20):
        await order(db, rows)
    submitters = [Submitter(open_db(), engine, settings, f"s{n}") for n in range(3)]
    for _ in range(3):
        await asyncio.gather(*(s.submit() for s in submitters))
    keys = [key for _, key, _, _ in engine.calls]
    assert len(keys) == len(set(keys)) == 20


async def test_run_submits_and_goes_on_after_the_engine_was_away(
    db: Database, engine: FakeEngine, rows: Rows, settings: Settings, notifier: FakeNotifier
) -> None:
    engine.script = [Busy("prefect"), Busy("prefect")]
    operation_id = await order(db, rows)
    stop = asyncio.Event()
    with structlog.testing.capture_logs():
        running = asyncio.create_task(dispatch.run(db, notifier, engine, settings, stop))
        await until(lambda: bool(engine.runs_by_key))
        stop.set()
        async with asyncio.timeout(20):
            await running
    assert len(engine.calls) == 3
    assert await state(db, operation_id) is AttemptState.SUBMITTED
