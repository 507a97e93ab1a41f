"""Attempts: submitted at least once, claimed at most once, and never by a run that somebody newer replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from flows.domain.lease import LeaseKind
from flows.domain.operation import AttemptState, Operation, OperationKind, OperationState, Queue
from flows.errors import Busy, Conflict, Fenced
from flows.state import attempts, control, leases, operations
from flows.state.database import Database

S = AttemptState
TTL = 60_000


@pytest.fixture
async def operation(timed: Database, make: Any) -> Operation:
    async with timed.write() as tx:
        made: Operation = await make.operation(tx)
    return made


async def claim(db: Database, operation: Operation, attempt: int = 1, holder: str = "run", generation: int | None = None) -> Any:
    async with db.write() as tx:
        generation = await control.generation(tx) if generation is None else generation
        return await attempts.claim_run(tx, operation.id, attempt, generation, holder, TTL)


async def present(db: Database, operation: Operation) -> Operation:
    async with db.read() as tx:
        found = await operations.get(tx, operation.id)
    assert found is not None
    return found


async def test_from_unclaimed_to_ended(timed: Database, clock: Any, operation: Operation) -> None:
    async with timed.write() as tx:
        (order,) = await attempts.claim_for_submission(tx, "dispatch-1", tx.now + 10_000, 50)
        assert (order.operation_id, order.attempt, order.kind, order.queue) == (operation.id, 1, OperationKind.PROVISION, Queue.PROVISIONING)
    assert (await present(timed, operation)).attempt_state is S.SUBMITTING
    async with timed.write() as tx:
        await attempts.submitted(tx, operation.id, 1, "run-id")
    assert (await present(timed, operation)).attempt_state is S.SUBMITTED
    clock.advance(5)
    claimed, lease = await claim(timed, operation)
    assert (claimed.state, claimed.attempt_state, claimed.claimed) == (OperationState.RUNNING, S.CLAIMED, 1)
    assert (claimed.started_at, claimed.attempt_at, claimed.progress_at) == (clock.now,) * 3
    assert (lease.kind, lease.operation_id, lease.subject, lease.holder) == (LeaseKind.OPERATION, operation.id, operation.server_id, "run")
    async with timed.write() as tx:
        assert await attempts.end(tx, operation.id, 1, "succeeded")
        assert not await attempts.end(tx, operation.id, 1, "fenced")
        (row,) = await attempts.list_(tx, operation.id)
    assert (row.state, row.run_id, row.outcome) == (S.ENDED, "run-id", "succeeded")


async def test_a_submission_belongs_to_one_submitter_until_its_time_is_over(timed: Database, clock: Any, operation: Operation) -> None:
    async def look(name: str) -> int:
        async with timed.write() as tx:
            return len(await attempts.claim_for_submission(tx, name, tx.now + 1_000, 50))

    assert [await look("one"), await look("two")] == [1, 0]
    clock.advance(999)
    assert await look("two") == 0
    clock.advance(1)
    assert await look("two") == 1


async def test_the_oldest_are_submitted_first_and_no_more_than_asked_for(timed: Database, clock: Any, make: Any) -> None:
    made = []
    for _ in range(4):
        async with timed.write() as tx:
            made.append((await make.operation(tx)).id)
        clock.advance(1)
    for expected in (made[:3], made[3:], []):
        async with timed.write() as tx:
            assert [s.operation_id for s in await attempts.claim_for_submission(tx, "d", tx.now + 1_000, 3)] == expected


async def test_what_the_engine_refused_goes_back_and_keeps_its_age(timed: Database, clock: Any, operation: Operation) -> None:
    for _ in range(3):
        async with timed.write() as tx:
            assert len(await attempts.claim_for_submission(tx, "d", tx.now + 1_000, 1)) == 1
        async with timed.write() as tx:
            await attempts.unsubmit(tx, operation.id, 1)
        clock.advance(10_000)
    assert (await present(timed, operation)).attempt_at == operation.attempt_at


async def test_the_sweep_takes_an_attempt_over_from_any_submitter_and_from_no_run(timed: Database, clock: Any, operation: Operation) -> None:
    async with timed.write() as tx:
        assert len(await attempts.claim_for_submission(tx, "dead", tx.now + 3_600_000, 1)) == 1
        taken = await attempts.take_over(tx, operation.id, 1, "sweep", tx.now + 1_000)
        assert taken.asked(7)[1:3] == (f"7:{operation.id}:1", {"operation_id": operation.id, "attempt": 1, "generation": 7})
        assert await attempts.claim_for_submission(tx, "other", tx.now + 1_000, 1) == []
    clock.advance(1_000)
    async with timed.write() as tx:
        assert len(await attempts.claim_for_submission(tx, "other", tx.now + 1_000, 1)) == 1
        await attempts.claim_run(tx, operation.id, 1, await control.generation(tx), "run", 60_000)
    async with timed.write() as tx:
        with pytest.raises(Fenced):
            await attempts.take_over(tx, operation.id, 1, "sweep", tx.now + 1_000)


async def test_a_run_that_is_faster_than_the_submitters_note_keeps_its_claim(timed: Database, operation: Operation) -> None:
    async with timed.write() as tx:
        await attempts.claim_for_submission(tx, "d", tx.now + 1_000, 1)
    await claim(timed, operation)
    async with timed.write() as tx:
        await attempts.submitted(tx, operation.id, 1, "run-id")
    with pytest.raises(Fenced):
        async with timed.write() as tx:
            await attempts.unsubmit(tx, operation.id, 1)
    async with timed.read() as tx:
        (row,) = await attempts.list_(tx, operation.id)
    assert (row.state, row.run_id) == (S.CLAIMED, "run-id")
    assert (await present(timed, operation)).attempt_state is S.CLAIMED


async def test_an_operation_that_ended_is_not_submitted(timed: Database, operation: Operation) -> None:
    async with timed.write() as tx:
        await operations.set_state(tx, operation.id, OperationState.CANCELLED)
        assert await attempts.claim_for_submission(tx, "d", tx.now + 1_000, 1) == []
    with pytest.raises(Fenced, match="cancelled"):
        await claim(timed, operation)


@pytest.mark.parametrize("difference", [-1, 1])
async def test_a_run_of_another_generation_ends(timed: Database, operation: Operation, difference: int) -> None:
    async with timed.read() as tx:
        generation = await control.generation(tx)
    with pytest.raises(Fenced, match="generation"):
        await claim(timed, operation, generation=generation + difference)
    assert (await present(timed, operation)).attempt_state is S.UNCLAIMED


async def test_a_second_run_of_the_same_attempt_ends(timed: Database, operation: Operation) -> None:
    await claim(timed, operation)
    with pytest.raises(Fenced, match="claimed"):
        await claim(timed, operation, holder="twin")


async def test_neither_without_the_other_when_somebody_holds_the_server(timed: Database, clock: Any, operation: Operation) -> None:
    async with timed.write() as tx:
        held = await leases.take(tx, operation.server_id, LeaseKind.MAINTENANCE, "admin", TTL)
    with pytest.raises(Busy, match="admin"):
        await claim(timed, operation)
    assert await present(timed, operation) == operation
    async with timed.write() as tx:
        await leases.release(tx, operation.server_id, held.token)
    await claim(timed, operation)


async def test_an_orphan_is_taken_over_by_revoking_and_the_next_attempt(timed: Database, clock: Any, operation: Operation) -> None:
    _, old = await claim(timed, operation)
    async with timed.write() as tx:
        await operations.set_state(tx, operation.id, OperationState.COMPENSATING)
    clock.advance(TTL)
    with pytest.raises(Fenced):
        await claim(timed, operation, 2)  # not written yet
    async with timed.write() as tx:
        await leases.revoke(tx, operation.server_id)
        assert await attempts.next_attempt(tx, operation.id) == 2
    again = await present(timed, operation)
    assert (again.attempt, again.attempt_state, again.state, again.attempt_at) == (2, S.UNCLAIMED, OperationState.COMPENSATING, clock.now)
    with pytest.raises(Fenced, match="newest"):
        await claim(timed, operation, 1)
    claimed, new = await claim(timed, operation, 2)
    assert new.token > old.token
    assert (claimed.state, claimed.claimed) == (OperationState.COMPENSATING, 1)  # the phase counts its own
    async with timed.read() as tx:
        assert [(r.attempt, r.state, r.outcome) for r in await attempts.list_(tx, operation.id)] == [
            (1, S.ENDED, "superseded"),
            (2, S.CLAIMED, None),
        ]


async def test_no_attempt_for_what_has_ended(timed: Database, operation: Operation) -> None:
    async with timed.write() as tx:
        await operations.set_state(tx, operation.id, OperationState.CANCELLED)
    with pytest.raises(Conflict, match="cancelled"):
        async with timed.write() as tx:
            await attempts.next_attempt(tx, operation.id)


class AttemptMachine(RuleBasedStateMachine):
    """Submitters, runs (late ones too), death and the sweep in any order: one attempt has one owner."""

    def __init__(self, url: str, clock: Any, make: Any) -> None:
        super().__init__()
        self.clock, self.make = clock, make
        self.runner = asyncio.Runner()
        self.db = Database(url, clock=clock)
        self.claims: list[tuple[int, int]] = []  # (attempt, lease token) in order
        self.newest = 1
        self.state = "unclaimed"
        self.submit_until = 0
        self.lease: tuple[int, int] | None = None  # token, expiry

    def teardown(self) -> None:
        self.runner.run(self.db.close())
        self.runner.close()

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        async def run() -> Any:
            async with self.db.write() as tx:
                return await function(tx, *arguments, **named)

        return self.runner.run(run())

    @initialize()
    def order(self) -> None:
        self.id = self.call(self.make.operation).id
        self.server = self.call(operations.get, self.id).server_id
        self.generation = self.call(control.generation)

    @rule(ms=st.sampled_from([1, 500, 1_000]))
    def time_passes(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule()
    def submitter_looks(self) -> None:
        async def look(tx: Any) -> Any:
            return await attempts.claim_for_submission(tx, "d", tx.now + 1_000, 5)

        free = self.state == "unclaimed" or (self.state == "submitting" and self.submit_until <= self.clock.now)
        assert [s.attempt for s in self.call(look)] == ([self.newest] if free else [])
        if free:
            self.state, self.submit_until = "submitting", self.clock.now + 1_000

    @rule(back=st.integers(0, 2))
    def submitter_notes_success(self, back: int) -> None:
        self.call(attempts.submitted, self.id, self.newest - back, "run")
        if back == 0 and self.state in ("unclaimed", "submitting"):
            self.state = "submitted"

    @rule(back=st.integers(0, 2))
    def submitter_notes_failure(self, back: int) -> None:
        possible = back == 0 and self.state in ("unclaimed", "submitting", "submitted")
        try:
            self.call(attempts.unsubmit, self.id, self.newest - back)
        except Fenced:
            assert not possible
        else:
            assert possible
            self.state = "unclaimed"

    @rule(back=st.integers(-1, 2), older=st.booleans())
    def a_run_begins(self, back: int, older: bool) -> None:
        attempt = self.newest - back
        claimable = back == 0 and not older and self.state in ("unclaimed", "submitting", "submitted")
        try:
            _, lease = self.call(attempts.claim_run, self.id, attempt, self.generation - older, "run", 1_000)
        except Fenced:
            assert not claimable
        except Busy:
            assert claimable
            assert self.lease is not None
        else:
            assert claimable
            assert self.lease is None
            self.claims.append((attempt, lease.token))
            self.state, self.lease = "claimed", (lease.token, lease.expires_at)

    @rule(how=st.sampled_from(["ends", "ends and releases"]))
    def the_run(self, how: str) -> None:
        if self.state == "claimed":
            assert self.call(attempts.end, self.id, self.newest, "failed")
            self.state = "ended"
            if how == "ends and releases" and self.lease is not None:
                self.call(leases.release, self.server, self.lease[0])
                self.lease = None

    @rule()
    def the_sweep_takes_over(self) -> None:
        self.call(leases.revoke, self.server)
        self.lease = None
        self.newest += 1
        assert self.call(attempts.next_attempt, self.id) == self.newest
        self.state = "unclaimed"

    @invariant()
    def one_owner(self) -> None:
        numbers, tokens = [a for a, _ in self.claims], [token for _, token in self.claims]
        assert numbers == sorted(set(numbers)), "an attempt is claimed once, and never after a newer one"
        assert tokens == sorted(set(tokens)), "each claim has a greater token"

    @invariant()
    def operation_repeats_its_newest_attempt(self) -> None:
        if not hasattr(self, "id"):
            return
        operation, rows = self.call(operations.get, self.id), self.call(attempts.list_, self.id)
        assert (operation.attempt, operation.attempt_state.value) == (self.newest, self.state)
        assert (rows[-1].attempt, rows[-1].state.value) == (self.newest, self.state)
        assert operation.claimed == len(self.claims)
        assert {r.state for r in rows[:-1]} <= {AttemptState.ENDED}


def test_attempts_agree_with_their_model(fresh: Callable[[], str], clock: Any, make: Any) -> None:
    run_state_machine_as_test(
        lambda: AttemptMachine(fresh(), clock, make),
        settings=settings(max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)),
    )
