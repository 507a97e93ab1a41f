"""Orders about operations that the API's tests do not reach: a person's retry of a clean-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import update

from flows.domain.intake import Ranges
from flows.domain.node import NodeUsage
from flows.domain.operation import OperationKind, OperationState
from flows.domain.placement import Placement, PlacementRequest
from flows.state import attempts, orders
from flows.state import tables as t
from flows.state.database import Database


def nowhere(request: PlacementRequest, nodes: Sequence[NodeUsage]) -> Placement:
    raise AssertionError("a clean-up keeps its place")


@pytest.mark.parametrize(("kind", "state"), [(OperationKind.DELETE, OperationState.RUNNING), (OperationKind.PROVISION, OperationState.COMPENSATING)])
async def test_a_clean_up_ordered_by_a_person_is_a_phase_of_its_own(timed: Database, make: Any, kind: OperationKind, state: OperationState) -> None:
    """With the old deadline and claims the next sweep would give it up at once."""
    async with timed.write() as tx:
        operation = await make.operation(tx, await make.server(tx), kind=kind)
        await attempts.end(tx, operation.id, 1, "cleanup_required")
        await tx.execute(update(t.operations).values(state="cleanup_required", claimed=3, undo_failures=3, deadline_at=tx.now - 1))
        ranges = Ranges(vmid_first=10_000, vmid_last=10_009, pool="10.0.0.0/8", address_first="", gateway="10.0.0.1", operation_ms=60_000)
        ordered = await orders.retry(tx, operation.id, "person", place=nowhere, ranges=ranges, cleanup=True)
        found = ordered.operation
        assert found is not None
        assert (found.state, found.attempt, found.claimed, found.deadline_at) == (state, 2, 0, tx.now + 60_000)
