"""``zlh validate provisioning`` on a live system: the real front door, dispatcher, executors, and the simulated fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import insert, update

from flows.act import trial
from flows.domain.operation import OperationState
from flows.errors import Busy, Conflict, Unreachable
from flows.observe import validation
from flows.state import control, leases, servers
from flows.state import tables as t
from tests.support.controller import Controller
from tests.support.live import live

pytestmark = pytest.mark.timeout(120)
WISH = trial.Wish(memory_mb=1024, disk_gb=8)


async def alive(run: Controller) -> list[str]:
    async with run.deps.database.read() as tx:
        return [s.name for s in await servers.list_(tx) if s.name.startswith(trial.PREFIX)]


async def test_exactly_one_of_everything_and_then_nothing(run: Controller) -> None:
    said: list[str] = []
    async with live(run) as system:
        report = await trial.run(run.deps, system.door, WISH, said.append)
    assert report.clean, report
    assert report.looked[:6] == ("1 record", "1 job", "1 container", "1 agent execution", "1 alert", "deleted without trace")
    assert await alive(run) == []
    look = validation.Lookers(run.deps.settings, run.deps.database, run.deps.proxmox, _nobody, None, "here")
    assert (await validation.database(look)).clean


async def _nobody() -> list[validation._Worker]:
    return []


async def test_what_a_killed_predecessor_left_is_deleted_first(run: Controller) -> None:
    """And an answer of the front door that is lost after its effect makes no second server."""
    lost = 2

    async with live(run) as system:

        async def door(method: str, path: str, body: object = None) -> object:
            nonlocal lost
            answer = await system.door(method, path, body)  # type: ignore[arg-type]  # passed on as it came
            if method == "POST" and lost:
                lost -= 1
                raise Unreachable("API", why="the answer was lost")
            return answer

        customer_id = await trial._customer(run.deps, WISH.customer)
        left, _, _ = await trial._order(run.deps, system.door, WISH, customer_id)
        said: list[str] = []
        report = await trial.run(run.deps, door, WISH, said.append)  # type: ignore[arg-type]  # as above
    assert report.clean, report
    assert said[0] == f"{left.name} was left by an interrupted validation: deleting it"
    assert await alive(run) == []


async def test_what_customers_named_like_it_stays(run: Controller) -> None:
    """Neither a name that only begins so, nor one of the very form whose order was somebody else's."""
    async with live(run) as system:
        customer_id = await trial._customer(run.deps, WISH.customer)
        names = ("validate-mine", "validate-0123abcd")
        for name in names:
            body = {
                "ctype": "game", "name": name, "flavor": "fabric", "version": "1.21.4", "memory_mb": 1024, "cores": 1, "disk_gb": 8,
                "request_nonce": f"mine-{name}", "customer_id": customer_id,
            }  # fmt: skip
            await run.ended(str((await system.door("POST", "/api/servers/create", body))["operation"]["id"]))
        said: list[str] = []
        report = await trial.run(run.deps, system.door, WISH, said.append)
        assert report.clean, report
        assert "left by an interrupted validation" not in "".join(said)
        assert await alive(run) == list(names)
        async with run.deps.database.read() as tx:
            mine = [s for s in await servers.list_(tx) if s.name in names]
        for server in mine:
            assert (await trial._delete(run.deps, system.door, server, lambda line: None)).clean


async def test_two_at_once_do_not_delete_each_others(run: Controller) -> None:
    """The second is told who is at work, and makes nothing; when the first is over it may."""
    ordered, go_on = asyncio.Event(), asyncio.Event()

    async with live(run) as system:

        async def door(method: str, path: str, body: object = None) -> object:
            answer = await system.door(method, path, body)  # type: ignore[arg-type]  # passed on as it came
            if method == "POST":
                ordered.set()
                await go_on.wait()
            return answer

        first = asyncio.create_task(trial.run(run.deps, door, WISH, lambda line: None))  # type: ignore[arg-type]  # as above
        try:
            await asyncio.wait_for(ordered.wait(), 30)
            said: list[str] = []
            with pytest.raises(Busy, match=trial.LEASE):
                await trial.run(run.deps, system.door, WISH, said.append)
            assert said == [] and len(await alive(run)) == 1
        finally:
            go_on.set()
            report = await first
        assert report.clean, report
    async with run.deps.database.read() as tx:
        assert trial.LEASE not in {lease.subject for lease in await leases.list_(tx)}


async def test_a_second_order_that_is_not_answered_still_ends_in_a_deletion(run: Controller) -> None:
    posts = 0
    async with live(run) as system:

        async def door(method: str, path: str, body: object = None) -> object:
            nonlocal posts
            posts += method == "POST"
            if method == "POST" and posts > 1:
                raise Conflict("orders", why="intake was closed in between")
            return await system.door(method, path, body)  # type: ignore[arg-type]  # passed on as it came

        with pytest.raises(Conflict, match="orders"):
            await trial.run(run.deps, door, WISH, lambda line: None)  # type: ignore[arg-type]  # as above
    assert await alive(run) == []


async def test_a_creation_that_fails_is_a_finding_and_leaves_nothing(run: Controller, faults: Callable[..., None]) -> None:
    faults("runner", "fail_task", call="preseed_fabric.yml")
    async with live(run) as system:
        report = await trial.run(run.deps, system.door, WISH, lambda line: None)
    assert [p.rule for p in report.problems] == ["not_created"]
    assert "zlh operations show" in report.problems[0].remedy
    assert await alive(run) == []


async def test_a_closed_intake_refuses_before_anything_is_made(run: Controller) -> None:
    async with run.deps.database.write() as tx:
        await control.set_intake_closed(tx, True, "test")
    try:
        async with live(run, deliver=False) as system:
            with pytest.raises(Conflict, match="No orders"):
                await trial.run(run.deps, system.door, WISH, lambda line: None)
    finally:
        async with run.deps.database.write() as tx:
            await control.set_intake_closed(tx, False, "test")
    assert await alive(run) == []


@pytest.mark.soak
async def test_nobody_takes_the_order_up(run: Controller) -> None:
    """It ends as a finding when its time is over, and says that the deletion does not end either."""
    timing = run.deps.settings.timing.model_copy(update={"operation_s": 1.0, "stuck_s": 0.5})
    deps = replace(run.deps, settings=run.deps.settings.model_copy(update={"timing": timing}))
    async with live(run, deliver=False) as system:
        report = await trial.run(deps, system.door, WISH, lambda line: None)
    assert [p.rule for p in report.problems] == ["not_created", "not_deleted"]
    async with live(run) as system:
        assert (await trial.run(run.deps, system.door, WISH, lambda line: None)).clean


@pytest.mark.soak
async def test_what_is_there_twice_is_counted(run: Controller) -> None:
    """A second record, run and alert of one order, put there by hand: each is named."""
    async with live(run) as system:
        customer_id = await trial._customer(run.deps, WISH.customer)
        server, operation_id, _ = await trial._order(run.deps, system.door, WISH, customer_id)
        assert (await run.ended(operation_id)).state is OperationState.SUCCEEDED
        async with run.deps.database.write() as tx:
            await tx.execute(insert(t.attempts).values(operation_id=operation_id, attempt=2, state="ended", created_at=tx.now, claimed_at=tx.now))
            await tx.execute(update(t.journal).where(t.journal.c.operation_id == operation_id).values(runs=2))
        report = await trial._judge(run.deps, server, operation_id, True)
        assert {p.says.partition(" for ")[0] for p in report.problems} == {"2 × run of the job", "2 × agent execution"}
        assert (await trial._judge(run.deps, server, operation_id, False)).problems[0].rule == "not_deduplicated"
        assert (await trial._delete(run.deps, system.door, server, lambda line: None)).clean
        async with run.deps.database.write() as tx:
            await tx.execute(update(t.vmids).where(t.vmids.c.vmid == server.vmid).values(state="reserved"))
        assert [p.objects for p in (await trial._delete(run.deps, system.door, server, lambda line: None)).problems] == [(f"vmids:{server.vmid}",)]
        async with run.deps.database.write() as tx:
            await tx.execute(update(t.vmids).where(t.vmids.c.vmid == server.vmid).values(state="quarantined"))
