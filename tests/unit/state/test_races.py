"""Two processes, one database: really at once, each with its own connections. Whoever loses is told so; nobody gets half."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy import update

from flows.domain.lease import LeaseKind
from flows.domain.operation import Operation, OperationKind
from flows.errors import AutomationError, Busy, Conflict, Fenced
from flows.state import addresses, attempts, control, customers, leases, operations, servers, vmids
from flows.state import tables as t
from flows.state.database import Database, Tx

T = TypeVar("T")
ROUNDS = 10


@pytest.fixture
def two(open_db: Callable[..., Database]) -> tuple[Database, Database]:
    return open_db(), open_db()


async def both(two: tuple[Database, Database], act: Callable[[Tx, int], Awaitable[T]], times: int = 1) -> list[T | AutomationError]:
    """``act`` in a transaction of each database, ``times`` times each, all at once; answers and refusals in no order."""

    async def one(db: Database, who: int) -> T | AutomationError:
        try:
            async with db.write() as tx:
                return await act(tx, who)
        except AutomationError as error:
            return error

    return await asyncio.gather(*(one(db, who) for _ in range(times) for who, db in enumerate(two)))


def split(results: list[Any]) -> tuple[list[Any], list[AutomationError]]:
    return [r for r in results if not isinstance(r, AutomationError)], [r for r in results if isinstance(r, AutomationError)]


async def test_no_vmid_and_no_address_is_given_twice(two: tuple[Database, Database]) -> None:
    numbers = await both(two, lambda tx, who: vmids.reserve(tx, f"s{who}", 10_000, 10_039), times=20)
    assert sorted(numbers) == list(range(10_000, 10_040))  # type: ignore[type-var]  # a refusal among them fails the comparison
    given = await both(two, lambda tx, who: addresses.reserve(tx, f"s{who}", "10.0.0.0/26", "10.0.0.1", "10.0.0.1"), times=20)
    assert len(set(given)) == len(given) == 40
    assert not split(given)[1]


async def test_one_name_one_server(two: tuple[Database, Database], make: Any) -> None:
    async with two[0].write() as tx:
        owner = await make.customer(tx)
        await make.node(tx)
    for n in range(ROUNDS):
        made, refused = split(await both(two, lambda tx, _who, n=n: make.server(tx, customer_id=owner.id, name=f"same-{n}"), times=2))  # type: ignore[misc]  # a lambda with a default
        assert len(made) == 1
        assert [getattr(r, "kind", "") for r in refused] == ["name_taken"] * 3


async def test_one_live_operation_per_server(two: tuple[Database, Database], make: Any) -> None:
    for _ in range(ROUNDS):
        async with two[0].write() as tx:
            server = await make.server(tx)
        made, refused = split(await both(two, lambda tx, _who, s=server: make.operation(tx, s, kind=OperationKind.START)))  # type: ignore[misc]  # a lambda with a default
        assert [r.facts["operation_id"] for r in refused if isinstance(r, Conflict)] == [made[0].id]


async def test_one_holder_per_lease(two: tuple[Database, Database]) -> None:
    for n in range(ROUNDS):
        for _ in range(2):  # a subject's first lease, and a later one
            got, refused = split(
                await both(two, lambda tx, who, n=n: leases.take(tx, f"s{n}", LeaseKind.REPAIR, f"p{who}", 60_000), times=2)  # type: ignore[misc]  # a lambda with a default
            )
            assert len(got) == 1
            assert len(refused) == 3
            assert all(isinstance(r, Busy) and got[0].holder in r.why for r in refused)
            async with two[0].write() as tx:
                await leases.release(tx, f"s{n}", got[0].token)


async def test_one_run_per_attempt(two: tuple[Database, Database], make: Any) -> None:
    for _ in range(ROUNDS):
        async with two[0].write() as tx:
            operation: Operation = await make.operation(tx)
            generation = await control.generation(tx)

        def claim(tx: Tx, who: int, operation: Operation = operation, generation: int = generation) -> Awaitable[Any]:
            return attempts.claim_run(tx, operation.id, 1, generation, f"run{who}", 60_000)

        got, refused = split(await both(two, claim, times=2))
        assert len(got) == 1
        assert [type(r) for r in refused] == [Fenced] * 3
        async with two[0].read() as tx:
            present, lease = await operations.get(tx, operation.id), await leases.get(tx, operation.server_id)
        assert present is not None
        assert lease is not None
        assert present.claimed == 1
        assert lease.holder == got[0][1].holder


async def test_an_attempt_is_submitted_by_one_submitter(two: tuple[Database, Database], make: Any) -> None:
    async with two[0].write() as tx:
        made = {(await make.operation(tx)).id for _ in range(20)}
    got, refused = split(await both(two, lambda tx, who: attempts.claim_for_submission(tx, f"d{who}", tx.now + 60_000, 3), times=5))
    assert not refused
    async with two[0].write() as tx:  # rows that one has locked are passed over by the others; the next look finds them
        got.append(await attempts.claim_for_submission(tx, "later", tx.now + 60_000, 50))
    ids = [s.operation_id for batch in got for s in batch]
    assert len(ids) == len(set(ids))
    assert set(ids) == made


async def test_one_next_attempt_where_two_sweeps_take_over(two: tuple[Database, Database], make: Any) -> None:
    async with two[0].write() as tx:
        operation = await make.operation(tx)
        seen = await leases.take(tx, operation.server_id, LeaseKind.OPERATION, "dead", 1, operation_id=operation.id)

    async def take_over(tx: Tx, _who: int) -> int:
        await leases.revoke(tx, operation.server_id, seen=seen)
        return await attempts.next_attempt(tx, operation.id)

    got, refused = split(await both(two, take_over, times=2))
    assert got == [2]
    assert len(refused) == 3


async def test_nobody_revokes_between_a_check_and_the_change_that_it_allows(two: tuple[Database, Database], make: Any) -> None:
    async with two[0].write() as tx:
        server = await make.server(tx)
        lease = await leases.take(tx, server.id, LeaseKind.REPAIR, "holder", 60_000)
    order: list[str] = []

    async def revoke() -> None:
        async with two[1].write() as tx:
            await leases.revoke(tx, server.id)
            order.append("revoked")

    async with two[0].write() as tx:
        await leases.check(tx, server.id, lease.token)
        other = asyncio.create_task(revoke())
        await asyncio.wait([other], timeout=0.2)  # long enough to get in, were it possible
        await servers.set_vmid(tx, server.id, 10_777)
        order.append("changed")
    await other
    assert order == ["changed", "revoked"]


@pytest.mark.parametrize("meanwhile", ["taken and given back", "renewed"])
async def test_nothing_slips_in_between_the_look_and_the_taking(
    two: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """On servers with row locks; SQLite's writers are alone anyway."""
    if two[0].sqlite:
        pytest.skip("SQLite's writers are alone anyway")
    async with two[0].write() as tx:
        old = await leases.take(tx, "s", LeaseKind.REPAIR, "old", 0)  # over at once, and free for anybody
        if meanwhile != "renewed":
            await leases.release(tx, "s", old.token)
    look, tokens = leases.get, [old.token]

    async def and_then(tx: Tx, subject: str) -> Any:
        seen = await look(tx, subject)
        monkeypatch.setattr(leases, "get", look)
        async with two[1].write() as other:
            if meanwhile == "renewed":
                await leases.renew(other, "s", old.token, 60_000)
            else:
                lease = await leases.take(other, "s", LeaseKind.REPAIR, "quick", 60_000)
                tokens.append(lease.token)
                await leases.release(other, "s", lease.token)
        return seen

    monkeypatch.setattr(leases, "get", and_then)
    with pytest.raises(Busy):
        async with two[0].write() as tx:
            await leases.take(tx, "s", LeaseKind.REPAIR, "slow", 60_000)
    async with two[0].read() as tx:
        present = await leases.get(tx, "s")
    assert present is not None
    assert present.token == tokens[-1]
    assert present.holder == ("old" if meanwhile == "renewed" else None)


async def test_a_deadlock_is_tried_again_where_the_transaction_is_a_function(two: tuple[Database, Database]) -> None:
    """On servers with row locks; SQLite's writers are alone anyway."""
    if two[0].sqlite:
        pytest.skip("SQLite's writers are alone anyway")
    met, tries = asyncio.Barrier(2), [0, 0]

    async def cross(tx: Tx, who: int) -> None:
        tries[who] += 1
        for n, plan in enumerate(("basic", "pro") if who == 0 else ("pro", "basic")):
            await tx.execute(update(t.plan_limits).where(t.plan_limits.c.plan == plan).values(servers=t.plan_limits.c.servers + 1))
            if n == 0 and tries[who] == 1:
                await met.wait()

    async with two[0].read() as tx:
        before = [limits.servers for limits in [await customers.get_plan(tx, plan) for plan in ("basic", "pro")] if limits is not None]
    await asyncio.gather(*(db.apply(lambda tx, who=who: cross(tx, who)) for who, db in enumerate(two)))  # type: ignore[misc]  # a lambda with a default
    async with two[0].read() as tx:
        after = [limits.servers for limits in [await customers.get_plan(tx, plan) for plan in ("basic", "pro")] if limits is not None]
    assert sorted(tries) == [1, 2]
    assert after == [n + 2 for n in before]


async def test_a_deadlock_of_a_transaction_that_cannot_be_repeated_is_told(two: tuple[Database, Database]) -> None:
    if two[0].sqlite:
        pytest.skip("SQLite's writers are alone anyway")
    met = asyncio.Barrier(2)

    async def cross(db: Database, plans: tuple[str, str]) -> AutomationError | None:
        try:
            async with db.write() as tx:
                await tx.execute(update(t.plan_limits).where(t.plan_limits.c.plan == plans[0]).values(servers=7))
                await met.wait()
                await tx.execute(update(t.plan_limits).where(t.plan_limits.c.plan == plans[1]).values(servers=7))
        except Busy as told:
            return told
        return None

    told = await asyncio.gather(cross(two[0], ("basic", "pro")), cross(two[1], ("pro", "basic")))
    assert sorted(str(error is None) for error in told) == ["False", "True"]
    assert "try again" in str(next(error for error in told if error is not None))
