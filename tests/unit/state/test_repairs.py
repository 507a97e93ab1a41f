"""Repairs: an intent before, one outcome after, breakers by the intents, and what becomes of those whose actor is gone."""

from __future__ import annotations

from typing import Any

import pytest

from flows.domain.finding import Action, Check, EpisodeChange, Finding, Outcome, Repair, Transition
from flows.domain.lease import LeaseKind
from flows.domain.operation import OperationState
from flows.state import audit, episodes, epochs, leases, operations, repairs
from flows.state.database import Database

HOUR = 3_600_000


def order(server: str = "s1", action: Action = Action.PUBLISH_DNS, check: Check = Check.DNS_RECORD) -> Repair:
    return Repair(Finding(check, server, "record is missing", level=1, server_id=server, host="pve1", action=action), action)


async def begin(db: Database, repair: Repair | None = None, *, epoch: int = 1, **options: Any) -> str:
    async with db.write() as tx:
        return await repairs.intent(tx, repair or order(), epoch, **options)


async def end(db: Database, repair_id: str, outcome: Outcome, detail: str = "") -> bool:
    async with db.write() as tx:
        return await repairs.outcome(tx, repair_id, outcome, detail)


async def test_intent_then_outcome_each_with_its_audit_line(timed: Database, clock: Any) -> None:
    repair = order()
    async with timed.write() as tx:
        await episodes.apply(tx, [EpisodeChange(Transition.OPENED, repair.finding.key, repair.finding, None, "repairing")])
        [episode] = (await episodes.open_(tx)).values()
        lease = await leases.take(tx, "s1", LeaseKind.REPAIR, "sweep", 60_000)
    repair_id = await begin(timed, lease=lease, epoch=42)
    async with timed.read() as tx:
        [row] = await repairs.unfinished(tx)
        assert await repairs.get(tx, repair_id) == row
    assert (row.id, row.action, row.host, row.level, row.counted, row.outcome, row.episode_id) == (
        repair_id, Action.PUBLISH_DNS, "pve1", 1, True, None, episode.id,
    )  # fmt: skip
    clock.advance(5_000)
    assert await end(timed, repair_id, Outcome.REPAIRED, "proven")
    async with timed.read() as tx:
        assert await repairs.unfinished(tx) == []
        [row] = await repairs.recent(tx, tx.now - HOUR)
        actions = [entry.action for entry in reversed(await audit.list_(tx))]
    assert (row.outcome, row.outcome_at, row.detail) == (Outcome.REPAIRED, clock.now, "proven")
    assert actions == ["episode.opened", "repair.publish_dns", "repair.repaired"]


async def test_an_outcome_is_written_once(timed: Database) -> None:
    repair_id = await begin(timed)
    assert await end(timed, repair_id, Outcome.FAILED, "first")
    assert not await end(timed, repair_id, Outcome.REPAIRED, "second")
    assert not await end(timed, repair_id, Outcome.FENCED)
    async with timed.read() as tx:
        [row] = await repairs.recent(tx, 0)
        assert len(await audit.list_(tx, action="repair.repaired")) == 0
    assert (row.outcome, row.detail) == (Outcome.FAILED, "first")


async def test_a_fenced_actor_may_still_say_so(timed: Database, clock: Any) -> None:
    epoch = await epochs.begin(timed, "a", 1_000)
    assert epoch is not None
    repair_id = await begin(timed, epoch=epoch)
    clock.advance(1_001)
    await epochs.begin(timed, "b", 1_000)
    assert await end(timed, repair_id, Outcome.FENCED)


@pytest.mark.parametrize(
    ("action", "counted"),
    [
        (Action.PUBLISH_DNS, True),
        (Action.WITHDRAW_DNS, False),
        (Action.DEREGISTER_PROXY, False),
        (Action.FAIL_STUCK, False),
        (Action.REVOKE_AND_RESUBMIT, False),
    ],
)
async def test_what_counts(timed: Database, action: Action, counted: bool) -> None:
    await begin(timed, order(action=action))
    async with timed.read() as tx:
        assert [row.counted for row in await repairs.recent(tx, 0)] == [counted]


async def opened(db: Database, repair_id: str) -> bool:
    async with db.read() as tx:
        return await repairs.opens_breaker(tx, repair_id, 3, HOUR)


async def test_the_third_failure_opens_the_breaker_once(timed: Database, clock: Any) -> None:
    found = []
    for outcome in (Outcome.FAILED, Outcome.REPAIRED, Outcome.UNVERIFIED, Outcome.FAILED, Outcome.FAILED):
        repair_id = await begin(timed)
        await end(timed, repair_id, outcome)
        found.append(await opened(timed, repair_id))
        clock.advance(60_000)
    assert found == [False, False, False, True, False]


async def test_failures_of_others_of_an_hour_ago_and_uncounted_ones_open_nothing(timed: Database, clock: Any) -> None:
    for repair in (order(), order("s2"), order(action=Action.WITHDRAW_DNS), order()):
        await end(timed, await begin(timed, repair), Outcome.FAILED)
    last = await begin(timed, order("s2"))
    await end(timed, last, Outcome.FAILED)
    assert not await opened(timed, last)
    clock.advance(HOUR)
    last = await begin(timed)
    await end(timed, last, Outcome.FAILED)
    assert not await opened(timed, last)


async def test_outcomes_out_of_order_open_it_too(timed: Database) -> None:
    ids = [await begin(timed) for _ in range(3)]
    found = []
    for repair_id in reversed(ids):
        await end(timed, repair_id, Outcome.FAILED)
        found.append(await opened(timed, repair_id))
    assert found == [False, False, True]


async def close(db: Database) -> list[str]:
    async with db.write() as tx:
        return [row.id for row in await repairs.close_abandoned(tx)]


async def test_an_intent_under_a_living_lease_is_not_abandoned(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        lease = await leases.take(tx, "s1", LeaseKind.REPAIR, "sweep", 60_000)
    repair_id = await begin(timed, lease=lease)
    assert await close(timed) == []
    clock.advance(60_000)
    assert await close(timed) == [repair_id]
    assert await close(timed) == []
    async with timed.read() as tx:
        [row] = await repairs.recent(tx, 0)
    assert (row.outcome, row.counted) == (Outcome.UNVERIFIED, True)


async def test_a_lease_that_passed_on_protects_nobody(timed: Database) -> None:
    async with timed.write() as tx:
        lease = await leases.take(tx, "s1", LeaseKind.REPAIR, "dead", 60_000)
    repair_id = await begin(timed, lease=lease)
    async with timed.write() as tx:
        await leases.release(tx, "s1", lease.token)
        await leases.take(tx, "s1", LeaseKind.REPAIR, "another", 60_000)
    assert await close(timed) == [repair_id]


async def test_an_intent_whose_operation_lives_is_not_abandoned(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        operation = await make.operation(tx)
    repair_id = await begin(timed, operation_id=operation.id)
    assert await close(timed) == []
    async with timed.write() as tx:
        await operations.set_state(tx, operation.id, OperationState.CANCELLED)
    assert await close(timed) == [repair_id]


async def test_the_sweep_at_work_keeps_its_own(timed: Database, clock: Any) -> None:
    epoch = await epochs.begin(timed, "a", 30_000)
    assert epoch is not None
    mine, others = await begin(timed, epoch=epoch), await begin(timed, epoch=epoch - 1)
    assert await close(timed) == [others]
    clock.advance(30_001)
    assert await close(timed) == [mine]


async def test_listings_and_counts(timed: Database, clock: Any) -> None:
    first = await begin(timed)
    await end(timed, first, Outcome.REPAIRED)
    clock.advance(HOUR)
    second = await begin(timed, order("s2"))
    async with timed.read() as tx:
        assert [r.id for r in await repairs.list_(tx)] == [second, first]
        assert [r.id for r in await repairs.list_(tx, server_id="s1")] == [first]
        assert [r.id for r in await repairs.list_(tx, outcome=Outcome.REPAIRED)] == [first]
        assert [r.id for r in await repairs.list_(tx, since=tx.now, limit=5)] == [second]
        assert [r.id for r in await repairs.recent(tx, tx.now - HOUR)] == [second]
        assert await repairs.counts(tx, 0) == {"repaired": 1, "unfinished": 1}


async def test_an_old_intent_without_an_outcome_stays_in_sight(timed: Database, clock: Any) -> None:
    repair_id = await begin(timed)
    clock.advance(10 * HOUR)
    async with timed.read() as tx:
        assert [r.id for r in await repairs.recent(tx, tx.now - HOUR)] == [repair_id]
