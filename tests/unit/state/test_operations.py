"""Operations: one live per server, legal moves alone, refusals on record."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, update

from flows.domain.operation import LIVE_STATES, OPERATION_TRANSITIONS, AttemptState, Operation, OperationKind, OperationState, StepName
from flows.domain.server import ContainerType
from flows.errors import Conflict, NotFound
from flows.state import attempts, audit, operations
from flows.state import tables as t
from flows.state.database import Database
from flows.state.operations import Nonce

O = OperationState  # noqa: E741 - as in the table of transitions
#: A legal way from queued to each state.
WAYS: dict[OperationState, list[OperationState]] = {
    O.QUEUED: [],
    O.RUNNING: [O.RUNNING],
    O.CANCELLING: [O.CANCELLING],
    O.COMPENSATING: [O.RUNNING, O.COMPENSATING],
    O.CLEANUP_REQUIRED: [O.RUNNING, O.CLEANUP_REQUIRED],
    O.SUCCEEDED: [O.RUNNING, O.SUCCEEDED],
    O.FAILED: [O.RUNNING, O.FAILED],
    O.CANCELLED: [O.CANCELLED],
}


async def brought_to(db: Database, make: Any, state: OperationState) -> Operation:
    async with db.write() as tx:
        operation: Operation = await make.operation(tx)
        for step in WAYS[state]:
            await operations.set_state(tx, operation.id, step)
    return operation


async def test_created_queued_with_one_unclaimed_attempt(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        made = await make.operation(tx, params={"reason": "test"})
    async with timed.read() as tx:
        assert await operations.get(tx, made.id) == made
        assert await operations.live_of(tx, made.server_id) == made
        assert [(r.attempt, r.state) for r in await attempts.list_(tx, made.id)] == [(1, AttemptState.UNCLAIMED)]
    assert made.deadline_at == made.created_at + 3_600_000


async def test_a_second_one_is_refused_and_told_which_is_live(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
        first = await make.operation(tx, server)
        with pytest.raises(Conflict, match=first.id) as refused:
            await make.operation(tx, server, kind=OperationKind.DELETE)
        assert refused.value.kind == "operation_live"
        assert refused.value.facts == {"operation_id": first.id, "kind": "provision", "state": "queued"}
        await operations.set_state(tx, first.id, O.CANCELLED)
        await make.operation(tx, server, kind=OperationKind.DELETE)


async def test_a_nonce_finds_the_creation_again_and_cannot_be_used_twice(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
        made = await make.operation(tx, server, nonce=Nonce("n-1", "hash"))
        other = await make.server(tx, customer_id=server.customer_id)
        with pytest.raises(Conflict) as refused:
            await make.operation(tx, other, nonce=Nonce("n-1", "hash"))
        assert (refused.value.kind, refused.value.facts) == ("nonce_used", {"operation_id": made.id})
        assert await operations.by_nonce(tx, server.customer_id, ContainerType.GAME, "n-1") == (made, "hash")
        assert await operations.by_nonce(tx, server.customer_id, ContainerType.DEV, "n-1") is None
        assert await operations.by_nonce(tx, server.customer_id, ContainerType.GAME, "N-1") is None
        stranger = await make.server(tx)
        await make.operation(tx, stranger, nonce=Nonce("n-1", "hash"))  # another customer's nonce is another one


@pytest.mark.parametrize("before", list(O))
@pytest.mark.parametrize("to", list(O))
async def test_only_moves_of_the_table(timed: Database, make: Any, before: OperationState, to: OperationState) -> None:
    operation = await brought_to(timed, make, before)
    if to in OPERATION_TRANSITIONS[before]:
        async with timed.write() as tx:
            await operations.set_state(tx, operation.id, to)
        expected = to
    else:
        with pytest.raises(Conflict) as refused:
            async with timed.write() as tx:
                await operations.set_state(tx, operation.id, to, actor="tester")
        assert refused.value.kind == "illegal_transition"
        expected = before
    async with timed.read() as tx:
        after = await operations.get(tx, operation.id)
        lines = await audit.list_(tx, action="operation.state.refused")
    assert after is not None
    assert after.state is expected
    assert (after.finished_at is None) == (expected in LIVE_STATES)
    async with timed.read() as tx:
        assert (await operations.live_of(tx, operation.server_id) is not None) == (expected in LIVE_STATES)
    wanted = [] if to in OPERATION_TRANSITIONS[before] else [("tester", operation.id, {"from": before.value, "to": to.value})]
    assert [(x.actor, x.operation_id, x.detail) for x in lines] == wanted


async def test_a_refusal_is_on_record_once_whether_its_transaction_commits_or_not(timed: Database, make: Any) -> None:
    operation = await brought_to(timed, make, O.SUCCEEDED)
    async with timed.write() as tx:
        with pytest.raises(Conflict):
            await operations.set_state(tx, operation.id, O.RUNNING)
    async with timed.read() as tx:
        assert len(await audit.list_(tx, action="operation.state.refused")) == 1


async def test_a_phase_counts_its_own_claims(timed: Database, make: Any) -> None:
    operation = await brought_to(timed, make, O.RUNNING)
    async with timed.write() as tx:
        await operations.undo_failed(tx, operation.id)
        await operations.set_state(tx, operation.id, O.COMPENSATING)
        await operations.new_phase(tx, operation.id)
        present = await operations.get(tx, operation.id)
    assert present is not None
    assert (present.claimed, present.undo_failures) == (0, 1)


async def test_trying_a_failed_one_again_takes_the_server_with_a_new_deadline(timed: Database, clock: Any, make: Any) -> None:
    operation = await brought_to(timed, make, O.FAILED)
    clock.advance(10_000_000)
    async with timed.write() as tx:
        await tx.execute(update(t.operations).values(started_at=1, error={"what": "the former one's"}))
        await operations.set_state(tx, operation.id, O.QUEUED, deadline_ms=1_000)
        present = await operations.live_of(tx, operation.server_id)
    assert present is not None
    assert (present.id, present.deadline_at, present.finished_at, present.claimed) == (operation.id, clock.now + 1_000, None, 0)
    assert (present.started_at, present.error) == (None, None), "how long it took and how it failed are the former one's"


async def test_a_failed_one_stays_failed_while_another_lives(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        server = await make.server(tx)
        first = await make.operation(tx, server)
        await operations.set_state(tx, first.id, O.FAILED)
        second = await make.operation(tx, server, kind=OperationKind.START)
    with pytest.raises(Conflict, match=second.id):
        async with timed.write() as tx:
            await operations.set_state(tx, first.id, O.QUEUED)


async def test_step_error_and_progress(timed: Database, clock: Any, make: Any) -> None:
    operation = await brought_to(timed, make, O.RUNNING)
    clock.advance(5)
    async with timed.write() as tx:
        await operations.set_step(tx, operation.id, StepName.TRUST, tx.now + 9)
        present = await operations.get(tx, operation.id)
        assert present is not None
        assert (present.step, present.step_deadline_at, present.progress_at) == (StepName.TRUST, clock.now + 9, clock.now)
        await operations.set_state(tx, operation.id, O.FAILED, error={"what": "trust", "why": "no answer"})
        present = await operations.get(tx, operation.id)
        assert present is not None
        assert (present.error, present.step, present.step_deadline_at) == ({"what": "trust", "why": "no answer"}, StepName.TRUST, None)
        with pytest.raises(Conflict, match="failed"):
            await operations.set_step(tx, operation.id, StepName.TRUST, 0)


async def test_cancelling_is_asked_once_and_audited(timed: Database, make: Any) -> None:
    operation = await brought_to(timed, make, O.RUNNING)
    async with timed.write() as tx:
        assert await operations.request_cancel(tx, operation.id, "customer:c")
        assert not await operations.request_cancel(tx, operation.id, "customer:c")
        present = await operations.get(tx, operation.id)
        assert present is not None
        assert present.cancel_requested
        assert [x.actor for x in await audit.list_(tx, action="operation.cancel")] == ["customer:c"]
        await operations.set_state(tx, operation.id, O.SUCCEEDED)
        with pytest.raises(Conflict, match="succeeded"):
            await operations.request_cancel(tx, operation.id, "customer:c")


async def test_unknown_ones_are_not_found(timed: Database) -> None:
    for act in (
        lambda tx: operations.set_state(tx, "nope", O.RUNNING),
        lambda tx: operations.set_step(tx, "nope", None, None),
        lambda tx: operations.request_cancel(tx, "nope", "me"),
        lambda tx: operations.new_phase(tx, "nope"),
    ):
        with pytest.raises(NotFound):
            async with timed.write() as tx:
                await act(tx)
    async with timed.read() as tx:
        assert await operations.get(tx, "nope") is None


async def test_lists(timed: Database, clock: Any, make: Any) -> None:
    async with timed.write() as tx:
        first = await make.operation(tx)
    clock.advance(1)
    async with timed.write() as tx:
        second = await make.operation(tx)
        await operations.set_state(tx, second.id, O.CANCELLED)

    async def ids(**how: Any) -> list[str]:
        async with timed.read() as tx:
            return [o.id for o in await operations.list_(tx, **how)]

    assert await ids() == [second.id, first.id]
    assert await ids(limit=1) == [second.id]
    assert await ids(state=O.QUEUED) == [first.id]
    assert await ids(state=[O.QUEUED, O.CANCELLED]) == [second.id, first.id]
    assert await ids(server_id=first.server_id) == [first.id]
    assert await ids(since=clock.now) == [second.id]
    assert await ids(live=True) == [first.id]


async def test_the_front_doors_calls_are_few_statements(timed: Database, make: Any) -> None:
    statements: list[str] = []
    async with timed.write() as tx:
        server = await make.server(tx)
        listener = lambda *arguments: statements.append(arguments[2])  # noqa: E731 - the event wants the same object twice
        event.listen(timed.engine.sync_engine, "before_cursor_execute", listener)
        await make.operation(tx, server)
        event.remove(timed.engine.sync_engine, "before_cursor_execute", listener)
    assert len([s for s in statements if "SAVEPOINT" not in s]) == 2
