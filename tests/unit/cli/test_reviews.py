"""``zlh approve --wait``: what became of the act that was approved, and of no other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import insert, update

from flows.cli import reviews
from flows.domain.finding import Action, Check, Decision, Review
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import new_id
from tests.unit.cli.conftest import MINUTE, Fleet


@pytest.mark.parametrize(("decision", "says"), [("withdrawn", "withdrawn"), ("carried_out", "repaired")])
def test_the_decision_is_looked_at_first_and_then_the_newest_act(
    fleet: Fleet, write: Callable[[Callable[[Tx], Awaitable[Any]]], Any], decision: str, says: str
) -> None:
    """The sweep may have begun an act for an earlier approval in the very moment of this one."""

    async def fill(tx: Tx) -> int:
        for ago, outcome in ((2, "failed"), (1, "repaired")):
            await tx.execute(
                insert(t.repairs).values(
                    id=new_id(), check="agent_offline", action="publish_dns", subject=fleet.ids["moss"], level=2, counted=True, epoch=1,
                    intent_at=tx.now - ago * MINUTE, outcome=outcome, outcome_at=tx.now,
                )
            )  # fmt: skip
        await tx.execute(update(t.reviews).values(decision=decision, decided_by="cli:root", decided_at=tx.now - 3 * MINUTE))
        return tx.now - 3 * MINUTE

    decided = write(fill)
    asked = Review(
        fleet.ids["review"], Check.AGENT_OFFLINE, Action.PUBLISH_DNS, fleet.ids["moss"], "0" * 64, {}, "x", decided, decided,
        decision=Decision.APPROVED, decided_at=decided,
    )  # fmt: skip
    assert reviews._outcome(asked) == says
