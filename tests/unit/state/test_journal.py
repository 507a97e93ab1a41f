"""The journal: a step that is done never runs again, an interrupted one remembers its task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from flows.domain.operation import Direction, Operation, StepName, StepState
from flows.errors import Conflict, Fenced
from flows.state import journal, operations
from flows.state.database import Database

DO, UNDO = Direction.DO, Direction.UNDO
CREATE = StepName.CREATE_CONTAINER


@pytest.fixture
async def operation(timed: Database, make: Any) -> Operation:
    async with timed.write() as tx:
        made: Operation = await make.operation(tx)
    return made


async def test_before_and_after_the_effect(timed: Database, clock: Any, operation: Operation) -> None:
    async with timed.write() as tx:
        row = await journal.begin(tx, operation.id, CREATE, DO, 1, tx.now + 60_000)
    assert (row.state, row.runs, row.attempt, row.started_at, row.deadline_at) == (StepState.STARTED, 1, 1, clock.now, clock.now + 60_000)
    clock.advance(7)
    async with timed.write() as tx:
        await journal.set_upid(tx, operation.id, CREATE, DO, "UPID:pve1:1")
    clock.advance(7)
    async with timed.write() as tx:
        await journal.done(tx, operation.id, CREATE, DO, {"vmid": 10_001})
    async with timed.read() as tx:
        (row,) = await journal.rows(tx, operation.id)
        present = await operations.get(tx, operation.id)
    assert (row.state, row.upid, row.finished_at, row.detail) == (StepState.DONE, "UPID:pve1:1", clock.now, {"vmid": 10_001})
    assert present is not None
    assert present.progress_at == clock.now


async def test_a_done_step_never_begins_again(timed: Database, operation: Operation) -> None:
    async with timed.write() as tx:
        await journal.begin(tx, operation.id, CREATE, DO, 1, 0)
        await journal.done(tx, operation.id, CREATE, DO)
    for attempt in (1, 2):
        with pytest.raises(Conflict) as refused:
            async with timed.write() as tx:
                await journal.begin(tx, operation.id, CREATE, DO, attempt, 0)
        assert refused.value.kind == "step_done"
    async with timed.write() as tx:
        assert (await journal.begin(tx, operation.id, CREATE, UNDO, 2, 0)).runs == 1


async def test_an_interrupted_step_begins_again_and_keeps_its_task(timed: Database, operation: Operation) -> None:
    async with timed.write() as tx:
        await journal.begin(tx, operation.id, CREATE, DO, 1, 0)
        await journal.set_upid(tx, operation.id, CREATE, DO, "UPID:pve1:1")
    async with timed.write() as tx:
        row = await journal.begin(tx, operation.id, CREATE, DO, 2, 5)
    assert (row.runs, row.attempt, row.upid, row.deadline_at) == (2, 2, "UPID:pve1:1", 5)


async def test_a_failed_step_begins_again(timed: Database, operation: Operation) -> None:
    async with timed.write() as tx:
        await journal.begin(tx, operation.id, CREATE, DO, 1, 0)
        await journal.failed(tx, operation.id, CREATE, DO, {"error": "storage full"})
        (row,) = await journal.rows(tx, operation.id)
        assert (row.state, row.detail) == (StepState.FAILED, {"error": "storage full"})
        assert (await journal.begin(tx, operation.id, CREATE, DO, 1, 0)).runs == 2
        await journal.done(tx, operation.id, CREATE, DO)
        (row,) = await journal.rows(tx, operation.id)
        assert row.detail == {}


async def test_an_older_attempt_cannot_take_a_step_back(timed: Database, operation: Operation) -> None:
    async with timed.write() as tx:
        await journal.begin(tx, operation.id, CREATE, DO, 2, 0)
    with pytest.raises(Fenced):
        async with timed.write() as tx:
            await journal.begin(tx, operation.id, CREATE, DO, 1, 0)


@pytest.mark.parametrize("act", [journal.done, journal.failed])
async def test_what_did_not_begin_cannot_end(timed: Database, operation: Operation, act: Any) -> None:
    with pytest.raises(Conflict) as refused:
        async with timed.write() as tx:
            await act(tx, operation.id, CREATE, DO)
    assert refused.value.kind == "step_not_begun"
    async with timed.write() as tx:
        await journal.begin(tx, operation.id, CREATE, DO, 1, 0)
        await journal.done(tx, operation.id, CREATE, DO)
    with pytest.raises(Conflict):
        async with timed.write() as tx:
            await act(tx, operation.id, CREATE, DO)


async def test_rows_come_in_the_order_of_their_begin(timed: Database, clock: Any, operation: Operation) -> None:
    order = [StepName.TRUST, StepName.CONFIGURE, StepName.ACTIVATE]
    for step in order:
        async with timed.write() as tx:
            await journal.begin(tx, operation.id, step, DO, 1, 0)
        clock.advance(1)
    async with timed.read() as tx:
        assert [r.step for r in await journal.rows(tx, operation.id)] == order


STEPS = st.sampled_from([(s, d) for s in (CREATE, StepName.CONFIGURE) for d in Direction])


class JournalMachine(RuleBasedStateMachine):
    """Any order of begin, done and failed by attempts old and new."""

    def __init__(self, url: str, clock: Any, make: Any) -> None:
        super().__init__()
        self.make = make
        self.runner = asyncio.Runner()
        self.db = Database(url, clock=clock)
        self.model: dict[tuple[StepName, Direction], tuple[StepState, int, int]] = {}  # state, attempt, runs
        self.finished: set[tuple[StepName, Direction]] = set()

    def teardown(self) -> None:
        self.runner.run(self.db.close())
        self.runner.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def run() -> Any:
            async with self.db.write() as tx:
                return await function(tx, *arguments)

        return self.runner.run(run())

    @initialize()
    def order(self) -> None:
        self.id = self.call(self.make.operation).id

    @rule(key=STEPS, attempt=st.integers(1, 3))
    def begin(self, key: tuple[StepName, Direction], attempt: int) -> None:
        state, by, runs = self.model.get(key, (StepState.STARTED, 0, 0))
        try:
            row = self.call(journal.begin, self.id, *key, attempt, 0)
        except Fenced:
            assert attempt < by
            assert state is not StepState.DONE
        except Conflict:
            assert state is StepState.DONE
        else:
            assert key not in self.finished, "a completed step ran again"
            assert attempt >= by
            assert row.runs == runs + 1
            self.model[key] = (StepState.STARTED, attempt, runs + 1)

    @rule(key=STEPS, well=st.booleans())
    def finish(self, key: tuple[StepName, Direction], well: bool) -> None:
        state, by, runs = self.model.get(key, (None, 0, 0))
        try:
            self.call(journal.done if well else journal.failed, self.id, *key)
        except Conflict:
            assert state is not StepState.STARTED
        else:
            assert state is StepState.STARTED
            self.model[key] = (StepState.DONE if well else StepState.FAILED, by, runs)
            if well:
                self.finished.add(key)

    @invariant()
    def the_database_agrees(self) -> None:
        if hasattr(self, "id"):
            assert {(r.step, r.direction): (r.state, r.attempt, r.runs) for r in self.call(journal.rows, self.id)} == self.model


def test_journal_agrees_with_its_model(fresh: Callable[[], str], clock: Any, make: Any) -> None:
    run_state_machine_as_test(
        lambda: JournalMachine(fresh(), clock, make),
        settings=settings(max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)),
    )
