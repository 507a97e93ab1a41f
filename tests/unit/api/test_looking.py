"""What customers see: servers, status, operations, the catalog."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest

from flows.act.endings import as_json
from flows.api.views import Players, time_of
from flows.clients.proxmox.session import Session
from flows.clients.proxmox.tasks import Tasks
from flows.domain.agent import WorkloadState
from flows.domain.lease import LeaseKind
from flows.domain.operation import Direction, OperationState, StepName
from flows.errors import TaskFailed
from flows.state import journal, leases, operations
from tests.support.house import House, active, artifact, claimed, failed, finished, observed, ordered, server_of

STATUS = {
    "id", "name", "state", "desired", "workload", "ready", "agent", "operation", "maintenance", "players", "last_crash",
    "provisioning_complete", "address", "observed_at",
}  # fmt: skip


async def test_a_list_holds_the_callers_servers_alone(house: House) -> None:
    mine = [(await ordered(house.alice, name=f"lotus{c}", request_nonce=c))[0] for c in "abc"]
    theirs, _ = await ordered(house.bob, name="fern")
    listed = (await house.alice.get("/api/servers")).json()
    assert [s["id"] for s in listed["servers"]] == mine and listed["next"] is None
    assert [s["id"] for s in (await house.admin.get("/api/servers")).json()["servers"]] == [*mine, theirs]


async def test_a_list_pages_and_filters(house: House) -> None:
    ids = [(await ordered(house.alice, name=f"lotus{c}", request_nonce=c)) for c in "abc"]
    await finished(house, ids[1][1])
    first = (await house.alice.get("/api/servers?limit=2")).json()
    second = (await house.alice.get(f"/api/servers?limit=2&after={first['next']}")).json()
    assert [s["id"] for s in first["servers"] + second["servers"]] == [i for i, _ in ids] and second["next"] is None
    assert [s["id"] for s in (await house.alice.get("/api/servers?state=active")).json()["servers"]] == [ids[1][0]]
    for query, field in (("state=great", "state"), ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=many", "limit")):
        answer = await house.alice.get(f"/api/servers?{query}")
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


async def test_a_server_never_shows_where_it_lives(house: House) -> None:
    """Node, container number and container address are the operator's; players meet the proxy."""
    server_id, _ = await ordered(house.alice)
    server = await server_of(house, server_id)
    for path in (f"/api/servers/{server_id}", f"/api/servers/{server_id}/status", "/api/servers"):
        text = (await house.alice.get(path)).text
        for secret in (server.address, server.node, str(server.vmid), server.storage, server.bridge):
            assert secret not in text
        assert "lotus.play.example" in text


async def test_status_of_a_running_server(house: House) -> None:
    server_id = await active(house, house.alice)
    await observed(house, server_id, players=3, provisioning_complete=True)
    status = (await house.alice.get(f"/api/servers/{server_id}/status")).json()
    assert set(status) == STATUS
    expected = {"state": "active", "agent": "ok", "ready": True, "workload": "running", "players": 3, "maintenance": False, "operation": None}
    assert expected.items() <= status.items()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", status["observed_at"])


async def test_a_list_and_a_look_say_what_the_status_says(house: House) -> None:
    """Whatever holds a server, and whatever is known of it, one statement brings it."""
    ids = [await active(house, house.alice, name=f"lotus{c}", request_nonce=c) for c in "abc"]
    await observed(house, ids[0], players=3, provisioning_complete=True, last_crash={"class": "oom"})
    await observed(house, ids[1], age_s=151, ready=False, players=7)
    async with house.database.write() as tx:
        await leases.take(tx, ids[2], LeaseKind.MAINTENANCE, "operator", 60_000)
    await observed(house, ids[2], reachable=False, ready=None, state=None)
    restart = (await house.alice.post(f"/api/servers/{ids[0]}/restart")).json()["operation"]["id"]
    await ordered(house.bob, name="fern")

    listed = {s["id"]: s for s in (await house.alice.get("/api/servers")).json()["servers"]}
    assert list(listed) == ids
    for server_id in ids:
        status = (await house.alice.get(f"/api/servers/{server_id}/status")).json()
        assert set(status) == STATUS and status.items() <= listed[server_id].items()
        assert (await house.alice.get(f"/api/servers/{server_id}")).json() == listed[server_id]
        assert listed[server_id]["memory_mb"] == 4096
    said = [(s["agent"], s["ready"], s["players"], s["maintenance"], (s["operation"] or {}).get("id")) for s in listed.values()]
    assert said == [("ok", True, 3, False, restart), ("unknown", None, None, False, None), ("unreachable", None, None, True, None)]


async def test_a_server_without_observation_or_lease_is_listed(house: House) -> None:
    server_id, creation = await ordered(house.alice)
    (listed,) = (await house.alice.get("/api/servers")).json()["servers"]
    assert (listed["id"], listed["state"], listed["operation"]["id"]) == (server_id, "creating", creation)
    assert (listed["agent"], listed["ready"], listed["observed_at"]) == ("unknown", None, None)


async def test_an_unreachable_agent_is_200_and_said(house: House) -> None:
    server_id = await active(house, house.alice)
    await observed(house, server_id, reachable=False, ready=None, state=None, last_crash={"class": "oom"})
    answer = await house.alice.get(f"/api/servers/{server_id}/status")
    status = answer.json()
    assert (answer.status_code, status["agent"], status["ready"], status["workload"], status["players"]) == (200, "unreachable", None, None, None)
    assert status["last_crash"] == {"class": "oom"}


@pytest.mark.parametrize("ready", [True, False])
async def test_old_news_are_unknown_whatever_they_said(house: House, ready: bool) -> None:
    server_id = await active(house, house.alice)
    await observed(house, server_id, age_s=151, ready=ready, players=3)
    status = (await house.alice.get(f"/api/servers/{server_id}/status")).json()
    assert (status["agent"], status["ready"], status["players"]) == ("unknown", None, None)
    assert status["observed_at"] is not None


async def test_never_observed_is_unknown(house: House) -> None:
    server_id, creation = await ordered(house.alice)
    status = (await house.alice.get(f"/api/servers/{server_id}/status")).json()
    assert (status["agent"], status["ready"], status["observed_at"]) == ("unknown", None, None)
    assert (status["operation"]["id"], status["operation"]["kind"]) == (creation, "provision")


async def test_proven_unready_is_false(house: House) -> None:
    server_id = await active(house, house.alice)
    await observed(house, server_id, ready=False, state=WorkloadState.STARTING)
    assert (await house.alice.get(f"/api/servers/{server_id}/status")).json()["ready"] is False


async def test_maintenance_shows_while_it_lasts(house: House) -> None:
    server_id = await active(house, house.alice)
    async with house.database.write() as tx:
        lease = await leases.take(tx, server_id, LeaseKind.MAINTENANCE, "operator", 60_000)
    assert (await house.alice.get(f"/api/servers/{server_id}/status")).json()["maintenance"] is True
    async with house.database.write() as tx:
        await leases.release(tx, server_id, lease.token)
    assert (await house.alice.get(f"/api/servers/{server_id}/status")).json()["maintenance"] is False


async def test_an_operation_step_by_step(house: House) -> None:
    server_id, creation = await ordered(house.alice)
    fresh = (await house.alice.get(f"/api/operations/{creation}")).json()
    assert (fresh["state"], fresh["progress"], fresh["started_at"]) == ("queued", {"done": 0, "total": 10}, None)
    assert f"POST /api/operations/{creation}/cancel" in fresh["next"]
    lease = await claimed(house, creation)
    async with house.database.write() as tx:
        for step in (StepName.CREATE_CONTAINER, StepName.CONFIGURE):
            await operations.set_step(tx, creation, step, tx.now + 1000)
            await journal.begin(tx, creation, step, Direction.DO, 1, tx.now + 1000)
        await journal.done(tx, creation, StepName.CREATE_CONTAINER, Direction.DO)
    running = (await house.alice.get(f"/api/operations/{creation}")).json()
    assert (running["kind"], running["state"], running["step"], running["server_id"]) == ("provision", "running", "configure", server_id)
    assert [s["state"] for s in running["steps"]] == ["done", "running"] + ["pending"] * 8
    assert running["progress"] == {"done": 1, "total": 10} and running["started_at"] is not None and lease.token > 0


async def test_what_was_undone_does_not_count_as_done(house: House) -> None:
    _, creation = await ordered(house.alice)
    await failed(house, creation)
    view = (await house.alice.get(f"/api/operations/{creation}")).json()
    assert (view["state"], view["steps"][0]["state"], view["progress"]["done"]) == ("failed", "undone", 0)
    assert view["error"] == {"what": "create_container", "type": "TaskFailed"}
    assert f"POST /api/operations/{creation}/retry" in view["next"]
    assert (await house.admin.get(f"/api/operations/{creation}")).json()["error"]["why"] == "pve1: no space left"


class Node:
    """Answers for a task that failed, as Proxmox does."""

    async def get(self, what: str, path: str, **_: Any) -> Any:
        return [{"n": 1, "t": "no space left on pve1"}] if path.endswith("/log") else {"status": "stopped", "exitstatus": "clone failed on pve1"}

    get_once = get


async def test_a_failed_task_of_proxmox_shows_its_step_and_nothing_of_the_node(house: House) -> None:
    """Node, template and token are in the task's id, and that is in what failed."""
    upid = "UPID:pve1:0000C0DE:0000BEEF:65A0B1C2:vzclone:9000:zlh@pve!autopilot:"
    with pytest.raises(TaskFailed) as caught:
        await Tasks(cast(Session, Node()), 0.01).wait(upid, 5.0)
    _, creation = await ordered(house.alice)
    await claimed(house, creation)
    async with house.database.write() as tx:
        for step, direction in ((StepName.CONFIGURE, Direction.DO), (StepName.CREATE_CONTAINER, Direction.UNDO)):
            await operations.set_step(tx, creation, step, tx.now + 1000)
            await journal.begin(tx, creation, step, direction, 1, tx.now + 1000)
            if direction is Direction.DO:
                await journal.failed(tx, creation, step, direction, {"error": str(caught.value)})
        await operations.set_state(tx, creation, OperationState.COMPENSATING, error=as_json(caught.value))
    answer = await house.alice.get(f"/api/operations/{creation}")
    assert answer.json()["error"] == {"what": "configure", "type": "TaskFailed"}  # not the step that is being undone
    assert not [word for word in ("pve1", "9000", "autopilot", "UPID") if word in answer.text]
    whole = (await house.admin.get(f"/api/operations/{creation}")).json()["error"]
    assert upid in whole["what"] and "no space left on pve1" in whole["why"]


async def test_a_queued_retry_shows_no_old_error(house: House) -> None:
    _, creation = await ordered(house.alice)
    await failed(house, creation)
    await house.alice.post(f"/api/operations/{creation}/retry")
    assert (await house.alice.get(f"/api/operations/{creation}")).json()["error"] is None


async def test_a_finished_operation_is_complete(house: House) -> None:
    _, creation = await ordered(house.alice)
    await finished(house, creation)
    view = (await house.alice.get(f"/api/operations/{creation}")).json()
    assert (view["state"], view["progress"], view["next"]) == ("succeeded", {"done": 10, "total": 10}, "nothing: it is over")


@pytest.mark.parametrize("state", [s for s in OperationState if s.value in ("cancelling", "compensating", "cleanup_required")])
async def test_every_state_says_what_is_next(house: House, state: OperationState) -> None:
    _, creation = await ordered(house.alice)
    await claimed(house, creation)
    async with house.database.write() as tx:
        await operations.set_state(tx, creation, state)
    assert (await house.alice.get(f"/api/operations/{creation}")).json()["next"]


async def test_unknown_ids_and_nonsense_are_404(house: House) -> None:
    for path in ("servers/0198c0de-0000-7000-8000-000000000000", "operations/0198c0de-0000-7000-8000-000000000000", "servers/1", "operations/x"):
        assert (await house.alice.get(f"/api/{path}")).status_code == 404


def test_addresses_are_under_the_proxys_name() -> None:
    assert time_of(1_760_000_000_007) == "2025-10-09T08:53:20.007Z"
    assert time_of(None) is None
    assert Players("play.example", 25565) != Players("play.example", 25566)


async def test_another_port_belongs_to_the_address(house: House) -> None:
    server = await server_of(house, (await ordered(house.alice))[0])
    assert Players("play.example", 25566).address_of(server) == "lotus.play.example:25566"


# --- catalog


async def test_the_catalog_lists_promoted_runtimes(house: House) -> None:
    answer = await house.alice.get("/api/catalog/runtimes")
    body = answer.json()
    assert [(r["name"], r["version"]) for r in body["runtimes"]] == [("go", "1.22.3"), ("python", "3.12.4")]
    assert body["stale"] is False


async def test_the_catalog_is_not_sent_twice(house: House) -> None:
    tag = (await house.alice.get("/api/catalog/runtimes")).headers["etag"]
    for header in (tag, f'"other", W/{tag}', "*"):
        again = await house.alice.get("/api/catalog/runtimes", headers={"If-None-Match": header})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    house.catalog.entries.append(artifact("runtime", "rust", "1.80.0"))
    house.deps.promoted.forget()
    changed = await house.alice.get("/api/catalog/runtimes", headers={"If-None-Match": tag})
    assert changed.status_code == 200 and changed.headers["etag"] != tag


async def test_a_stale_catalog_says_so_and_none_at_all_is_503(house: House) -> None:
    house.catalog.stale = True
    fresh = await house.alice.get("/api/catalog/runtimes")
    assert (fresh.status_code, fresh.json()["stale"]) == (200, True)
    house.deps.promoted.forget()
    house.catalog.down = True
    none = await house.alice.get("/api/catalog/runtimes")
    assert (none.status_code, none.json()["type"]) == (503, "urn:zlh:problem:unavailable")
    assert int(none.headers["retry-after"]) >= 1
