"""Start, stop, restart, delete, cancel and retry: repeats, refusals that name what is in the way, and what each leaves behind."""

from __future__ import annotations

import asyncio

import pytest

from flows.domain.agent import WorkloadState
from flows.domain.lease import LeaseKind
from flows.domain.operation import OperationKind, OperationState, Queue
from flows.domain.server import Desired, Edge, ServerState
from flows.state import accounts, attempts, journal, leases, operations, servers
from flows.state import tables as t
from tests.support.house import House, active, audited, claimed, failed, finished, observed, order, ordered, server_of

PROBLEM = "urn:zlh:problem:"
VERBS = ("start", "stop", "restart")


@pytest.mark.parametrize("verb", VERBS)
async def test_an_order_is_an_operation_in_the_queue(house: House, verb: str) -> None:
    server_id = await active(house, house.alice)
    answer = await house.alice.post(f"/api/servers/{server_id}/{verb}") if verb != "start" else await started_anew(house, server_id)
    body = answer.json()
    assert (answer.status_code, body["deduplicated"], body["operation"]["kind"]) == (202, False, verb)
    assert answer.headers["location"] == f"/api/operations/{body['operation']['id']}"
    async with house.database.read() as tx:
        operation = await operations.get(tx, body["operation"]["id"])
    assert operation is not None
    assert (operation.kind, operation.state, operation.queue) == (OperationKind(verb), OperationState.QUEUED, Queue.OPERATIONS)
    assert (f"customer:{house.alice.customer_id}", f"server.{verb}") in await audited(house)


async def started_anew(house: House, server_id: str):  # type: ignore[no-untyped-def]  # an httpx.Response
    await observed(house, server_id, state=WorkloadState.CRASHED, ready=False)
    return await house.alice.post(f"/api/servers/{server_id}/start")


async def test_desired_and_edge_follow_the_order_at_once(house: House) -> None:
    server_id = await active(house, house.alice)
    assert (await server_of(house, server_id)).edge is Edge.OPEN
    stop = await house.alice.post(f"/api/servers/{server_id}/stop")
    server = await server_of(house, server_id)
    assert (server.desired, server.desired_by, server.edge) == (Desired.STOPPED, f"customer:{house.alice.customer_id}", Edge.WITHDRAWN)
    await finished(house, stop.json()["operation"]["id"])
    await house.admin.post(f"/api/servers/{server_id}/start")
    server = await server_of(house, server_id)
    assert (server.desired, server.desired_by, server.edge) == (Desired.RUNNING, "admin:root", Edge.WITHDRAWN)  # open once proven ready


@pytest.mark.parametrize("verb", VERBS)
async def test_a_repeat_of_what_runs_is_the_same_operation(house: House, verb: str) -> None:
    server_id = await active(house, house.alice)
    await observed(house, server_id, state=WorkloadState.CRASHED, ready=False)
    answers = await asyncio.gather(*(house.alice.post(f"/api/servers/{server_id}/{verb}") for _ in range(10)))
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["operation"]["id"] for a in answers}) == 1
    assert sorted(a.json()["deduplicated"] for a in answers) == [False] + [True] * 9
    assert await house.count(t.operations) == 2


async def test_a_repeat_of_what_is_gets_the_operation_that_made_it_so(house: House) -> None:
    server_id, creation = await ordered(house.alice)
    await finished(house, creation)
    start = await house.alice.post(f"/api/servers/{server_id}/start")
    assert (start.status_code, start.json()["operation"]["id"], start.json()["deduplicated"]) == (202, creation, True)
    stop = (await house.alice.post(f"/api/servers/{server_id}/stop")).json()["operation"]["id"]
    await finished(house, stop)
    again = await house.alice.post(f"/api/servers/{server_id}/stop")
    assert (again.json()["operation"]["id"], again.json()["deduplicated"]) == (stop, True)
    assert await house.count(t.operations) == 2


@pytest.mark.parametrize(
    "seen",
    [
        {"state": WorkloadState.CRASHED, "ready": False},
        {"state": WorkloadState.STOPPED, "ready": False},
        {"state": None, "ready": None, "reachable": False},
    ],
    ids=["crashed", "stopped", "unreachable"],
)
async def test_a_start_is_new_when_something_newer_says_that_it_does_not_run(house: House, seen: dict[str, object]) -> None:
    server_id = await active(house, house.alice)
    await observed(house, server_id, **seen)
    answer = await house.alice.post(f"/api/servers/{server_id}/start")
    assert (answer.json()["operation"]["kind"], answer.json()["deduplicated"]) == ("start", False)


@pytest.mark.parametrize(("ended_s", "seen_s"), [(200, 160), (160, 200)], ids=["seen last", "ended last"])
async def test_old_news_prove_nothing(house: House, ended_s: int, seen_s: int) -> None:
    server_id, creation = await ordered(house.alice)
    await finished(house, creation)
    async with house.database.write() as tx:
        await tx.execute(t.operations.update().values(finished_at=tx.now - ended_s * 1000))
    await observed(house, server_id, age_s=seen_s)
    answer = await house.alice.post(f"/api/servers/{server_id}/start")
    assert answer.json()["deduplicated"] is False


async def test_a_restart_is_always_wanted(house: House) -> None:
    server_id = await active(house, house.alice)
    first = (await house.alice.post(f"/api/servers/{server_id}/restart")).json()["operation"]["id"]
    await finished(house, first)
    assert (await house.alice.post(f"/api/servers/{server_id}/restart")).json()["operation"]["id"] != first


@pytest.mark.parametrize("verb", VERBS)
async def test_409_names_the_operation_that_holds_the_server(house: House, verb: str) -> None:
    server_id, creation = await ordered(house.alice)
    answer = await house.alice.post(f"/api/servers/{server_id}/{verb}")
    body = answer.json()
    assert (answer.status_code, body["type"]) == (409, PROBLEM + "server_held")
    assert (body["operation_id"], body["kind"], body["state"]) == (creation, "provision", "queued")
    assert (await server_of(house, server_id)).desired is Desired.RUNNING  # a refused order changes no wish


async def test_opposite_orders_at_once_leave_one_operation(house: House) -> None:
    server_id = await active(house, house.alice)
    answers = await asyncio.gather(*(house.alice.post(f"/api/servers/{server_id}/{('stop', 'restart')[i % 2]}") for i in range(10)))
    kept = {a.json()["operation"]["id"] for a in answers if a.status_code == 202}
    assert len(kept) == 1
    assert {a.json()["operation_id"] for a in answers if a.status_code == 409} == kept
    assert await house.count(t.operations) == 2


@pytest.mark.parametrize("kind", [LeaseKind.BACKUP, LeaseKind.RESTORE, LeaseKind.PATCH, LeaseKind.MAINTENANCE])
@pytest.mark.parametrize("verb", [*VERBS, "delete"])
async def test_409_names_the_lease_that_holds_the_server(house: House, kind: LeaseKind, verb: str) -> None:
    server_id = await active(house, house.alice)
    async with house.database.write() as tx:
        await leases.take(tx, server_id, kind, "somebody", 60_000, reason="new disk")
    path = f"/api/servers/{server_id}"
    answer = await (house.alice.delete(path) if verb == "delete" else house.alice.post(f"{path}/{verb}"))
    body = answer.json()
    assert (answer.status_code, body["type"], body["lease"], body["reason"]) == (409, PROBLEM + "server_held", kind.value, "new disk")
    assert (await server_of(house, server_id)).state is ServerState.ACTIVE


async def test_an_order_waits_for_a_repair_instead_of_being_refused(house: House) -> None:
    server_id = await active(house, house.alice)
    async with house.database.write() as tx:
        await leases.take(tx, server_id, LeaseKind.REPAIR, "sweep", 60_000)
    assert (await house.alice.post(f"/api/servers/{server_id}/stop")).status_code == 202


@pytest.mark.parametrize("verb", ["start", "restart"])
async def test_402_while_suspended(house: House, verb: str) -> None:
    server_id = await active(house, house.alice)
    assert house.alice.customer_id is not None
    async with house.database.write() as tx:
        await accounts.suspend(tx, house.alice.customer_id, "test")
    answer = await house.alice.post(f"/api/servers/{server_id}/{verb}")
    assert (answer.status_code, answer.json()["type"]) == (402, PROBLEM + "billing")
    assert (await house.alice.post(f"/api/servers/{server_id}/stop")).status_code == 202


@pytest.mark.parametrize("verb", VERBS)
async def test_a_failed_or_deleted_server_takes_no_such_order(house: House, verb: str) -> None:
    server_id, creation = await ordered(house.alice)
    await failed(house, creation)
    answer = await house.alice.post(f"/api/servers/{server_id}/{verb}")
    assert (answer.status_code, answer.json()["type"], answer.json()["state"]) == (409, PROBLEM + "wrong_state", "failed")


@pytest.mark.parametrize("verb", [*VERBS, "delete", "show", "status"])
async def test_what_belongs_to_somebody_else_is_not_there(house: House, verb: str) -> None:
    server_id = await active(house, house.alice)
    path = f"/api/servers/{server_id}"
    calls = {"delete": lambda: house.bob.delete(path), "show": lambda: house.bob.get(path), "status": lambda: house.bob.get(f"{path}/status")}
    answer = await calls.get(verb, lambda: house.bob.post(f"{path}/{verb}"))()
    assert (answer.status_code, answer.json()) == (404, {"type": PROBLEM + "not_found", "title": "Not found", "status": 404})
    assert await house.count(t.operations) == 1


# --- delete


async def test_delete_goes_forward(house: House) -> None:
    server_id = await active(house, house.alice)
    answer = await house.alice.delete(f"/api/servers/{server_id}")
    server = await server_of(house, server_id)
    assert (answer.status_code, answer.json()["operation"]["kind"], answer.json()["server"]["state"]) == (202, "delete", "deleting")
    assert (server.state, server.edge, server.desired) == (ServerState.DELETING, Edge.WITHDRAWN, Desired.STOPPED)
    again = await house.alice.delete(f"/api/servers/{server_id}")
    assert (again.json()["operation"]["id"], again.json()["deduplicated"]) == (answer.json()["operation"]["id"], True)
    await finished(house, answer.json()["operation"]["id"])
    after = await house.alice.delete(f"/api/servers/{server_id}")
    assert (after.status_code, after.json()["operation"]["id"], after.json()["server"]["state"]) == (202, answer.json()["operation"]["id"], "deleted")
    assert (await house.alice.get("/api/servers")).json()["servers"] == []


async def test_delete_while_creating_cancels_and_compensates(house: House) -> None:
    server_id, creation = await ordered(house.alice)
    await claimed(house, creation)
    answer = await house.alice.delete(f"/api/servers/{server_id}")
    assert (answer.status_code, answer.json()["operation"]["id"], answer.json()["deduplicated"]) == (202, creation, False)
    async with house.database.read() as tx:
        operation = await operations.get(tx, creation)
    assert operation is not None and operation.cancel_requested
    assert (await server_of(house, server_id)).state is ServerState.CREATING  # until its run has undone everything
    assert (await house.alice.delete(f"/api/servers/{server_id}")).json()["deduplicated"] is True
    assert await house.count(t.operations) == 1


async def test_delete_of_a_cleanly_failed_server_has_nothing_left_to_do(house: House) -> None:
    server_id, creation = await ordered(house.alice)
    await failed(house, creation)
    answer = await house.alice.delete(f"/api/servers/{server_id}")
    assert (answer.status_code, answer.json()["operation"], answer.json()["server"]["state"]) == (200, None, "deleted")
    assert await house.count(t.operations) == 1


async def test_delete_during_a_restart_names_it(house: House) -> None:
    server_id = await active(house, house.alice)
    restart = (await house.alice.post(f"/api/servers/{server_id}/restart")).json()["operation"]["id"]
    answer = await house.alice.delete(f"/api/servers/{server_id}")
    assert (answer.status_code, answer.json()["operation_id"]) == (409, restart)
    assert (await server_of(house, server_id)).state is ServerState.ACTIVE


async def test_delete_is_possible_while_suspended(house: House) -> None:
    server_id = await active(house, house.alice)
    assert house.alice.customer_id is not None
    async with house.database.write() as tx:
        await accounts.suspend(tx, house.alice.customer_id, "test")
    assert (await house.alice.delete(f"/api/servers/{server_id}")).status_code == 202


# --- cancel


async def test_cancel_before_activation(house: House) -> None:
    _, creation = await ordered(house.alice)
    first, again = [await house.alice.post(f"/api/operations/{creation}/cancel") for _ in range(2)]
    assert (first.status_code, first.json()["operation"]["id"], first.json()["deduplicated"]) == (202, creation, False)
    assert (again.status_code, again.json()["operation"]["id"], again.json()["deduplicated"]) == (202, creation, True)
    assert [line for line in await audited(house) if line[1] == "operation.cancel"] == [(f"customer:{house.alice.customer_id}", "operation.cancel")]


@pytest.mark.parametrize("end", [finished, failed], ids=["succeeded", "failed"])
async def test_cancel_after_the_end_is_409(house: House, end) -> None:  # type: ignore[no-untyped-def]  # a coroutine function
    _, creation = await ordered(house.alice)
    await end(house, creation)
    answer = await house.alice.post(f"/api/operations/{creation}/cancel")
    assert (answer.status_code, answer.json()["type"]) == (409, PROBLEM + "not_cancellable")


async def test_only_a_creation_can_be_taken_back(house: House) -> None:
    server_id = await active(house, house.alice)
    stop = (await house.alice.post(f"/api/servers/{server_id}/stop")).json()["operation"]["id"]
    answer = await house.alice.post(f"/api/operations/{stop}/cancel")
    assert (answer.status_code, answer.json()["kind"]) == (409, "stop")


@pytest.mark.parametrize("verb", ["cancel", "retry"])
async def test_operations_of_somebody_else_are_not_there(house: House, verb: str) -> None:
    _, creation = await ordered(house.alice)
    assert (await house.bob.post(f"/api/operations/{creation}/{verb}")).status_code == 404
    assert (await house.bob.get(f"/api/operations/{creation}")).status_code == 404
    assert (await house.admin.get(f"/api/operations/{creation}")).status_code == 200


# --- retry


async def test_retry_of_a_failed_creation_begins_anew_elsewhere(house: House) -> None:
    server_id, creation = await ordered(house.alice)
    before = await server_of(house, server_id)
    await failed(house, creation)
    answer = await house.alice.post(f"/api/operations/{creation}/retry")
    assert (answer.status_code, answer.json()["operation"]["id"], answer.json()["operation"]["state"]) == (202, creation, "queued")
    after = await server_of(house, server_id)
    assert after.state is ServerState.CREATING
    assert after.vmid != before.vmid and after.address != before.address  # the first ones are in quarantine
    async with house.database.read() as tx:
        operation = await operations.get(tx, creation)
        assert await journal.rows(tx, creation) == ()  # else no step could begin again
        assert [(a.attempt, a.state) for a in await attempts.list_(tx, creation)] == [(1, "ended"), (2, "unclaimed")]
        assert await servers.by_name(tx, "lotus") == after
    assert operation is not None and (operation.claimed, operation.step, operation.finished_at) == (0, None, None)
    again = await house.alice.post(f"/api/operations/{creation}/retry")
    assert (again.status_code, again.json()["type"], again.json()["state"]) == (409, PROBLEM + "not_retryable", "queued")
    await finished(house, creation)


async def test_retry_of_a_failed_stop(house: House) -> None:
    server_id = await active(house, house.alice)
    stop = (await house.alice.post(f"/api/servers/{server_id}/stop")).json()["operation"]["id"]
    await failed(house, stop)
    answer = await house.alice.post(f"/api/operations/{stop}/retry")
    assert (answer.status_code, answer.json()["operation"]["id"]) == (202, stop)
    await finished(house, stop)
    assert (await server_of(house, server_id)).vmid == 10_000


async def test_only_the_newest_operation_is_tried_again(house: House) -> None:
    server_id = await active(house, house.alice)
    stop = (await house.alice.post(f"/api/servers/{server_id}/stop")).json()["operation"]["id"]
    await failed(house, stop)
    restart = (await house.alice.post(f"/api/servers/{server_id}/restart")).json()["operation"]["id"]
    answer = await house.alice.post(f"/api/operations/{stop}/retry")
    assert (answer.status_code, answer.json()["operation_id"]) == (409, restart)


async def test_an_older_failure_is_not_tried_again_even_if_the_newer_one_failed_too(house: House) -> None:
    server_id = await active(house, house.alice)
    ids = []
    for verb in ("stop", "restart"):
        ids.append((await house.alice.post(f"/api/servers/{server_id}/{verb}")).json()["operation"]["id"])
        await failed(house, ids[-1])
    answer = await house.alice.post(f"/api/operations/{ids[0]}/retry")
    assert (answer.status_code, answer.json()["operation_id"]) == (409, ids[1])


@pytest.mark.parametrize("state", ["queued", "cleanup_required", "succeeded"])
async def test_what_has_not_failed_cleanly_is_not_tried_again(house: House, state: str) -> None:
    _, creation = await ordered(house.alice)
    if state == "succeeded":
        await finished(house, creation)
    elif state == "cleanup_required":
        await claimed(house, creation)
        async with house.database.write() as tx:
            await operations.set_state(tx, creation, OperationState.CLEANUP_REQUIRED)
    answer = await house.alice.post(f"/api/operations/{creation}/retry")
    assert (answer.status_code, answer.json()["state"]) == (409, state)


async def test_a_retry_keeps_every_rule_of_a_creation(house: House) -> None:
    _, creation = await ordered(house.alice)
    await failed(house, creation)
    assert house.alice.customer_id is not None
    async with house.database.write() as tx:
        await accounts.suspend(tx, house.alice.customer_id, "test")
    assert (await house.alice.post(f"/api/operations/{creation}/retry")).status_code == 402
    async with house.database.write() as tx:
        await accounts.resume(tx, house.alice.customer_id, "test")
    await ordered(house.bob)  # takes the name
    answer = await house.alice.post(f"/api/operations/{creation}/retry")
    assert (answer.status_code, answer.json()["type"]) == (409, PROBLEM + "name_taken")
    for i in range(3):
        await ordered(house.alice, name=f"fern{chr(97 + i)}", request_nonce=f"n{i}")
    assert (await house.alice.post(f"/api/operations/{creation}/retry")).status_code == 429
    assert [await house.count(table) for table in (t.vmids, t.addresses)] == [5, 5]  # none of the refusals reserved anything


async def test_a_deleted_server_is_not_tried_again(house: House) -> None:
    server_id, creation = await ordered(house.alice)
    await failed(house, creation)
    await house.alice.delete(f"/api/servers/{server_id}")
    assert (await house.alice.post(f"/api/operations/{creation}/retry")).json()["type"] == PROBLEM + "wrong_state"


async def test_the_name_is_free_again_after_a_clean_failure(house: House) -> None:
    _, creation = await ordered(house.alice)
    await failed(house, creation)
    answer = await house.alice.post("/api/servers/create", order(request_nonce="n2"))
    assert answer.status_code == 202


async def test_a_deployment_changes_nothing_that_is_desired(house: House) -> None:
    """Neither the wish nor the edge: the workload goes on. A second order is the same operation, one after its end a new one."""
    server_id = await active(house, house.alice)
    before = await server_of(house, server_id)
    path = f"/api/servers/{server_id}/deploy-agent"
    first, again = await house.admin.post(path), await house.admin.post(path)
    assert (first.status_code, first.json()["operation"]["kind"]) == (202, "deploy_agent")
    assert (again.json()["operation"]["id"], again.json()["deduplicated"]) == (first.json()["operation"]["id"], True)
    after = await server_of(house, server_id)
    assert (after.desired, after.desired_by, after.edge) == (before.desired, before.desired_by, Edge.OPEN)
    assert (await house.alice.post(f"/api/servers/{server_id}/restart")).status_code == 409
    await finished(house, first.json()["operation"]["id"])
    assert (await house.admin.post(path)).json()["deduplicated"] is False


async def test_a_deployment_is_possible_while_the_account_is_suspended(house: House) -> None:
    server_id = await active(house, house.alice)
    async with house.database.write() as tx:
        await accounts.suspend(tx, house.alice.customer_id, "test")
    assert (await house.admin.post(f"/api/servers/{server_id}/deploy-agent")).status_code == 202


async def test_customers_deploy_nothing(house: House) -> None:
    server_id = await active(house, house.alice)
    answer = await house.alice.post(f"/api/servers/{server_id}/deploy-agent")
    assert (answer.status_code, answer.json()["type"]) == (403, PROBLEM + "forbidden")
    assert await house.count(t.operations) == 1
