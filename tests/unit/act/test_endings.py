"""How an operation ends that the controller ended: what has no undo fails, a deletion waits for its next try, the server is given back."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from flows.act.executor import SUPERSEDED
from flows.domain.operation import OperationKind, OperationState
from flows.errors import TaskFailed
from flows.state import attempts, leases
from flows.state import tables as t
from tests.unit.act.conftest import House


async def _holder(house: House, server_id: str) -> str | None:
    async with house.db.read() as tx:
        lease = await leases.get(tx, server_id)
    return lease.holder if lease is not None else None


async def _told(house: House, kind: str) -> int:
    return len(await house.rows(select(t.outbox.c.id).where(t.outbox.c.kind == kind)))


@pytest.mark.parametrize("kind", [OperationKind.START, OperationKind.STOP, OperationKind.RESTART])
async def test_an_undo_ordered_for_what_has_none_fails_it_and_says_so_once(house: House, kind: OperationKind) -> None:
    operation = await house.order(kind)
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(state="compensating"))
    assert await house.run(operation) == "failed"
    assert await house.state(operation) is OperationState.FAILED
    assert await _holder(house, operation.server_id) is None
    assert await _told(house, "operation_failed") == 1
    assert not [call for call in house.world.calls if call.startswith("agent.")]


async def test_an_undo_ordered_for_a_deletion_leaves_it_to_its_next_try(house: House) -> None:
    operation = await house.order(OperationKind.DELETE)
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(state="compensating"))
    assert await house.run(operation) == "cleanup_required"
    assert (await house.operation(operation.id)).undo_failures == 1
    assert house.world.containers, "nothing is destroyed on the way back"
    assert await _holder(house, operation.server_id) is None


async def test_what_is_over_its_deadline_is_not_tried_again(house: House) -> None:
    operation = await house.order(OperationKind.START)
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(deadline_at=tx.now - 1))
    house.world.before["agent.start"] = [TaskFailed("agent", why="no")]
    assert await house.run(operation) == "failed"
    assert await _told(house, "operation_failed") == 1


async def test_an_attempt_that_was_superseded_before_it_began_touches_nothing(house: House) -> None:
    operation = await house.order(OperationKind.START)
    async with house.db.write() as tx:
        await attempts.next_attempt(tx, operation.id)
    assert await house.run(operation, attempt=1) == SUPERSEDED
    assert house.world.calls == [] and await _holder(house, operation.server_id) is None


async def test_a_failed_deletion_goes_on_where_it_stood(house: House) -> None:
    """The second try neither withdraws nor stops again what its journal says is done."""
    operation = await house.order(OperationKind.DELETE)
    house.world.before["destroy"] = [TaskFailed("destroy", why="protected")]
    assert await house.run(operation) == "cleanup_required"
    before = house.world.times("agent.stop"), house.world.times("proxmox.stop")
    async with house.db.write() as tx:
        await attempts.clean_up_again(tx, await house.operation(operation.id), deadline_ms=60_000)
    assert await house.run(operation) == "succeeded"
    assert (house.world.times("agent.stop"), house.world.times("proxmox.stop")) == before
    assert not house.world.containers
