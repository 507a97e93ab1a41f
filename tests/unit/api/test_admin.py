"""The operator's routes: customers and brakes."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from flows.domain.server import Edge, ServerState
from flows.state import customers
from flows.state import tables as t
from tests.support.house import House, active, audited, finished, ordered, server_of


async def test_customers_are_added_and_listed(house: House) -> None:
    added = await house.operator.post("/api/admin/customers", {"name": "Carol", "plan": "basic"})
    assert (added.status_code, added.json()["billing"], added.json()["plan"]) == (201, "active", "basic")
    listed = (await house.operator.get("/api/admin/customers")).json()["customers"]
    assert [c["name"] for c in listed] == ["Alice", "Bob", "Carol"] and added.json() in listed
    assert (await audited(house))[-1] == ("admin:root", "customer.add")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"name": "Alice", "plan": "basic"}, 409, "name_taken"),
        ({"name": "Carol", "plan": "golden"}, 422, "invalid_field"),
        ({"name": "", "plan": "basic"}, 422, "invalid_field"),
        ({"name": "Carol", "plan": "basic", "billing": "free"}, 422, "invalid_field"),
    ],
)
async def test_a_customer_that_cannot_be(house: House, body: dict[str, str], status: int, kind: str) -> None:
    answer = await house.operator.post("/api/admin/customers", body)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:zlh:problem:{kind}")
    assert await house.count(t.customers) == 2


async def test_suspend_withdraws_at_once_and_resume_opens_what_should_run(house: House) -> None:
    runs = await active(house, house.alice)
    stopped = await active(house, house.alice, name="fern", request_nonce="n2")
    stop = await house.alice.post(f"/api/servers/{stopped}/stop")
    await finished(house, stop.json()["operation"]["id"])
    path = f"/api/admin/customers/{house.alice.customer_id}"

    first, again = [await house.operator.post(f"{path}/suspend") for _ in range(2)]
    assert (first.status_code, first.json()["billing"], first.json()["changed"], again.json()["changed"]) == (200, "suspended", True, False)
    for server_id in (runs, stopped):
        server = await server_of(house, server_id)
        assert (server.state, server.edge) == (ServerState.SUSPENDED, Edge.WITHDRAWN)
    assert (await house.alice.post("/api/servers/create", {})).status_code == 422  # still served, only not with orders

    resumed = await house.operator.post(f"{path}/resume")
    assert (resumed.json()["billing"], resumed.json()["changed"]) == ("active", True)
    assert [((await server_of(house, i)).state, (await server_of(house, i)).edge) for i in (runs, stopped)] == [
        (ServerState.ACTIVE, Edge.OPEN),
        (ServerState.ACTIVE, Edge.WITHDRAWN),
    ]
    assert ("admin:root", "customer.billing") in await audited(house)


async def test_suspend_during_creating_leaves_the_creation_to_its_run(house: House) -> None:
    server_id, _ = await ordered(house.alice)
    await house.operator.post(f"/api/admin/customers/{house.alice.customer_id}/suspend")
    assert (await server_of(house, server_id)).state is ServerState.CREATING
    async with house.database.read() as tx:
        assert house.alice.customer_id is not None
        assert await customers.is_suspended(tx, house.alice.customer_id)


@pytest.mark.parametrize("verb", ["suspend", "resume"])
async def test_nobody_is_404(house: House, verb: str) -> None:
    answer = await house.operator.post(f"/api/admin/customers/0198c0de-0000-7000-8000-000000000000/{verb}")
    assert answer.status_code == 404


async def test_pause_and_resume(house: House) -> None:
    paused = await house.operator.post("/api/admin/brakes/pause", {"scope": "host", "target": "pve1", "reason": "new disks"})
    assert (paused.status_code, paused.json()["actor"], paused.json()["until"]) == (201, "admin:root", None)
    assert (await house.operator.get("/api/admin/brakes")).json()["brakes"] == [paused.json()]
    other = await house.operator.post("/api/admin/brakes/resume", {"scope": "all"})
    assert other.json() == {"lifted": []}
    lifted = await house.operator.post("/api/admin/brakes/resume", {"scope": "host", "target": "pve1"})
    assert [b["id"] for b in lifted.json()["lifted"]] == [paused.json()["id"]]
    assert (await house.operator.get("/api/admin/brakes")).json()["brakes"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scope": "planet", "reason": "x"}, "scope"),
        ({"scope": "host", "reason": "x", "target": ""}, "target"),
        ({"scope": "all", "reason": "x", "target": "pve1"}, "target"),
        ({"scope": "all"}, "reason"),
        ({"scope": "all", "reason": "x", "until": 1}, "until"),
        ({"scope": "all", "reason": "x", "until": 253_402_300_800_000}, "until"),
        ({"scope": "all", "reason": "x", "until": 2**63}, "until"),
        ({"scope": "all", "reason": "x", "until": 10**30}, "until"),
        ({"scope": "host", "reason": "x"}, "target"),
        ({"scope": "host", "reason": "x", "target": "pve9"}, "target"),
        ({"scope": "server", "reason": "x", "target": "lotus"}, "target"),
    ],
)
async def test_a_pause_that_cannot_be(house: House, body: dict[str, object], field: str) -> None:
    answer = await house.operator.post("/api/admin/brakes/pause", body)
    assert (answer.status_code, [e["field"] for e in answer.json()["errors"]]) == (422, [field])
    assert await house.count(t.brakes) == 0


async def test_the_longest_pause_there_is(house: House) -> None:
    paused = await house.operator.post("/api/admin/brakes/pause", {"scope": "all", "reason": "x", "until": 253_402_300_799_999})
    assert (paused.status_code, paused.json()["until"]) == (201, "9999-12-31T23:59:59.999Z")


async def test_a_brake_is_announced_in_its_own_transaction(house: House) -> None:
    await house.operator.post("/api/admin/brakes/pause", {"scope": "all", "reason": "holiday"})
    await house.operator.post("/api/admin/brakes/resume", {"scope": "all"})
    async with house.database.read() as tx:
        kinds = [row.kind for row in await tx.execute(select(t.outbox.c.kind).order_by(t.outbox.c.created_at, t.outbox.c.id))]
    assert kinds == ["automation_paused", "automation_resumed"]
