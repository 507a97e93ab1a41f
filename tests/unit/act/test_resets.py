"""The sweep that proves a reset: what it mends itself, or will, is no finding."""

from __future__ import annotations

from sqlalchemy import insert, update

from flows.act import resets
from flows.domain.operation import OperationKind
from flows.state import episodes
from flows.state import tables as t
from tests.support.controller import NoGate
from tests.unit.act.conftest import House


async def test_more_orders_than_one_sweep_submits_again_are_no_finding(house: House) -> None:
    """Each lost its run with the engine's database; the limits take two per host, the others wait for the next sweeps."""
    for _ in range(5):
        await house.order(OperationKind.RESTART)
    async with house.db.write() as tx:
        await tx.execute(update(t.operations).values(attempt_at=tx.now - 600_000, attempt_state="submitted"))
        await tx.execute(update(t.attempts).values(created_at=tx.now - 600_000, state="submitted"))
    report = await resets.prove_sweep(house.deps(), NoGate(), house.said.append, gated=False)
    async with house.db.read() as tx:
        reasons = [row.reason for row in (await episodes.open_(tx)).values()]
    assert sorted(reasons) == [*["rate_limited"] * 3, *["repairing"] * 2]
    assert report.clean, report


async def test_only_a_sweep_that_began_after_the_reset_proves_it(house: House) -> None:
    """One that was under way had looked at the world before."""
    async with house.db.write() as tx:
        began = tx.now
        row = {"holder": "another", "outcome": "clean", "summary": {}}
        await tx.execute(insert(t.sweeps).values(epoch=1, started_at=began - 5, finished_at=began + 5, **row))
    assert await resets._others(house.db, began, 0) is None
    async with house.db.write() as tx:
        await tx.execute(insert(t.sweeps).values(epoch=2, started_at=began, finished_at=began + 5, **row))
    found = await resets._others(house.db, began, 0)
    assert found is not None and found.epoch == 2
