"""The creation transaction under pressure: many at once, answers lost, two processes, and what it writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from sqlalchemy import select

from flows.api.app import public_app
from flows.api.deps import ApiDeps
from flows.bootstrap import router
from flows.domain.flavor import ENVIRONMENTS, GAMES
from flows.domain.node import Node
from flows.domain.operation import AttemptState
from flows.domain.server import Desired, Edge, ServerState
from flows.errors import Unreachable
from flows.lab.config import DEFAULT_TEMPLATES
from flows.settings import Settings
from flows.state import attempts, audit, nodes, operations, outbox, servers
from flows.state import tables as t
from flows.state.customers import PlanLimits, put_plan
from flows.state.database import Database, Tx
from tests.support.house import House, Lane, build, order, ordered

PROJECT = Path(__file__).parents[3]
TABLES = (t.servers, t.operations, t.attempts, t.vmids, t.addresses)


async def test_what_is_written(house: House) -> None:
    server_id, operation_id = await ordered(house.alice)
    async with house.database.read() as tx:
        server, operation = await servers.get(tx, server_id), await operations.get(tx, operation_id)
        tries = await attempts.list_(tx, operation_id)
        lines = await audit.list_(tx, server_id=server_id)
        waiting = (await tx.execute(select(t.outbox))).all()
    assert server is not None and operation is not None
    assert (server.state, server.desired, server.edge) == (ServerState.CREATING, Desired.RUNNING, Edge.WITHDRAWN)
    assert (server.node, server.storage, server.bridge, server.template_vmid) == ("pve1", "local-zfs", "vmbr1", 9001)
    assert (server.vmid, server.address) == (10_000, "10.20.0.11")
    assert (operation.attempt, operation.claimed, operation.deadline_at - operation.created_at) == (1, 0, 3_600_000)
    assert [(a.attempt, a.state) for a in tries] == [(1, AttemptState.UNCLAIMED)]
    assert [(x.actor, x.action, x.operation_id) for x in lines] == [(f"customer:{house.alice.customer_id}", "server.create", operation_id)]
    assert waiting == []  # an order is no news; what becomes of it is


async def test_twenty_identical_submits_at_once_are_one_order(house: House) -> None:
    answers = await asyncio.gather(*(house.alice.post("/api/servers/create", order()) for _ in range(20)))
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["operation"]["id"] for a in answers}) == len({a.headers["location"] for a in answers}) == 1
    assert sorted(a.json()["deduplicated"] for a in answers) == [False] + [True] * 19
    assert [await house.count(table) for table in TABLES] == [1] * 5


async def test_twenty_identical_submits_to_two_processes_are_one_order(house: House, settings: Settings) -> None:
    async with second_process(house, settings) as other:
        lanes = [house.alice, other] * 10
        answers = await asyncio.gather(*(lane.post("/api/servers/create", order()) for lane in lanes))
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["operation"]["id"] for a in answers}) == 1
    assert [await house.count(table) for table in TABLES] == [1] * 5


async def test_twenty_bodies_under_one_nonce_are_one_order_and_nineteen_conflicts(house: House) -> None:
    answers = await asyncio.gather(*(house.alice.post("/api/servers/create", order(name=f"lotus{chr(97 + i)}")) for i in range(20)))
    assert sorted(a.status_code for a in answers) == [202] + [409] * 19
    assert {a.json()["type"] for a in answers if a.status_code == 409} == {"urn:zlh:problem:nonce_reused"}
    assert [await house.count(table) for table in TABLES] == [1] * 5


async def test_one_name_wanted_by_many_goes_to_one(house: House, settings: Settings) -> None:
    async with second_process(house, settings, house.bob.token) as other:
        lanes = [house.alice, other] * 5
        answers = await asyncio.gather(*(lane.post("/api/servers/create", order(request_nonce=f"n{i}")) for i, lane in enumerate(lanes)))
    assert sorted(a.status_code for a in answers) == [202] + [409] * 9
    assert [await house.count(table) for table in TABLES] == [1] * 5


async def test_a_quota_holds_against_a_burst(house: House, settings: Settings) -> None:
    async with second_process(house, settings) as other:
        lanes = [house.alice, other] * 5
        bodies = [order(name=f"lotus{chr(97 + i)}", request_nonce=f"n{i}") for i in range(10)]
        answers = await asyncio.gather(*(lane.post("/api/servers/create", body) for lane, body in zip(lanes, bodies, strict=True)))
    assert sorted(a.status_code for a in answers) == [202] * 3 + [429] * 7
    assert [await house.count(table) for table in TABLES] == [3] * 5


async def test_the_last_room_of_a_node_goes_to_one(house: House, settings: Settings) -> None:
    async with house.database.write() as tx:
        await nodes.put(tx, Node("pve1", 2_048 + 4_096, 1_000, 16, "local-zfs", "vmbr1", {"fabric": 9001}))
    async with second_process(house, settings, house.bob.token) as other:
        lanes = [house.alice, other] * 5
        bodies = [order(name=f"lotus{chr(97 + i)}", request_nonce=f"n{i}") for i in range(10)]
        answers = await asyncio.gather(*(lane.post("/api/servers/create", body) for lane, body in zip(lanes, bodies, strict=True)))
    assert sorted(a.status_code for a in answers) == [202] + [503] * 9
    assert {a.json()["type"] for a in answers if a.status_code == 503} == {"urn:zlh:problem:no_capacity"}
    assert [await house.count(table) for table in TABLES] == [1] * 5


async def test_a_burst_of_different_orders_gets_different_identities(house: House) -> None:
    async with house.database.write() as tx:
        await put_plan(tx, PlanLimits("basic", 100, 10**6, 10**6, 1))
    lanes = [house.alice, house.bob]
    answers = await asyncio.gather(
        *(lanes[i % 2].post("/api/servers/create", order(name=f"s{i}x", request_nonce=f"n{i}", memory_mb=256, disk_gb=1)) for i in range(40))
    )
    assert {a.status_code for a in answers} == {202}
    async with house.database.read() as tx:
        built = await servers.list_(tx)
    assert len({s.vmid for s in built}) == len({s.address for s in built}) == len({s.name for s in built}) == 40


class Lossy(Database):
    """A database whose answer to the next commit is lost, before or after its effect."""

    lose: str = ""

    async def apply(self, work: Callable[[Tx], Awaitable[Any]]) -> Any:
        lose, self.lose = self.lose, ""
        if lose == "before":
            raise Unreachable("database", why="connection lost")
        result = await super().apply(work)
        if lose == "after":
            raise Unreachable("database", why="connection lost at the commit")
        return result


@pytest.mark.parametrize(("lose", "status", "rows"), [("after", 202, 1), ("before", 503, 0)])
async def test_a_lost_answer_to_the_commit_is_looked_up(database: Database, settings: Settings, lose: str, status: int, rows: int) -> None:
    lossy = Lossy(database.url)
    try:
        async with build(lossy, settings) as house:
            lossy.lose = lose
            answer = await house.alice.post("/api/servers/create", order())
            assert answer.status_code == status
            assert await house.count(t.operations) == rows
            again = await house.alice.post("/api/servers/create", order())
            assert (again.status_code, again.json()["deduplicated"]) == (202, bool(rows))
    finally:
        await lossy.close()


async def test_a_uniqueness_met_only_at_the_insert_finds_the_order(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a server that was asked for the nonce a moment before the other process committed it."""
    from flows.state import intake

    async with build(database, settings) as house:
        _, operation_id = await ordered(house.alice)
        real, asked = intake._facts, []

        async def blind(tx: Tx, *of: Any) -> Any:
            asked.append(await real(tx, *of))
            return SimpleNamespace(**{**asked[-1]._mapping, "repeats": None})

        monkeypatch.setattr(intake, "_facts", blind)
        answer = await house.alice.post("/api/servers/create", order())
        assert [row.repeats for row in asked] == [operation_id]
        assert (answer.status_code, answer.json()["operation"]["id"]) == (202, operation_id)
        assert [await house.count(table) for table in TABLES] == [1] * 5


async def test_the_catalog_is_asked_before_the_transaction_and_not_per_request(house: House) -> None:
    for i in range(3):
        await house.alice.post("/api/servers/create", order(name=f"lotus{chr(97 + i)}", request_nonce=f"n{i}"))
    assert house.catalog.asked == 1


async def test_nobody_waits_for_the_engine_or_the_outbox(house: House) -> None:
    """202 says recorded: the attempt is there for whoever submits."""
    _, operation_id = await ordered(house.alice)
    async with house.database.write() as tx:
        claimed = await attempts.claim_for_submission(tx, "dispatch", tx.now + 10_000, 10)
        stats = await outbox.stats(tx)
    assert [(c.operation_id, c.attempt) for c in claimed] == [(operation_id, 1)]
    assert stats is not None


@asynccontextmanager
async def second_process(house: House, settings: Settings, token: str | None = None) -> AsyncIterator[Lane]:
    """Another API process on the same database file: an engine, a writer's thread and caches of its own."""
    database = Database(house.database.url)
    app = public_app(ApiDeps(database, settings, router(settings), house.catalog))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://other", timeout=30) as client:
        yield Lane(client, token or house.alice.token, None)
    await database.close()


def test_the_labs_templates_and_the_games_role_are_of_known_flavors() -> None:
    role = yaml.safe_load((PROJECT / "roles/fabric_server/meta/argument_specs.yml").read_text())
    described = role["argument_specs"]["main"]["options"]["fabric_server_flavor"]["description"]
    assert {word.strip(".,") for word in described.split(" - ")[1].split()} - {"or"} == GAMES
    assert {template.flavor for template in DEFAULT_TEMPLATES} <= GAMES | ENVIRONMENTS.keys()
    assert not GAMES & ENVIRONMENTS.keys()
