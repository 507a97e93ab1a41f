"""The control listener: what the proxy may rehydrate, and what Prometheus reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.domain.agent import WorkloadState
from flows.domain.server import BillingState, Edge, ServerState
from flows.settings import ApiSettings, Settings
from flows.state import customers, epochs, leases, servers
from flows.state.database import Database
from tests.support.house import CONTROL_TOKEN, House, active, build, observed, ordered, server_of

BACKENDS = "/internal/proxy/backends"


async def ask(house: House, path: str = BACKENDS) -> Any:
    return await house.control.get(path, headers={"Authorization": f"Bearer {CONTROL_TOKEN}"})


async def names(house: House) -> list[str]:
    return [b["name"] for b in (await ask(house)).json()["backends"]]


async def test_no_server_is_a_complete_answer(house: House) -> None:
    answer = await ask(house)
    assert (answer.status_code, answer.json()) == (200, {"epoch": 0, "complete": True, "backends": []})
    assert answer.headers["cache-control"] == "no-store"


async def test_a_ready_backend_with_its_starting_token_and_the_epoch(house: House) -> None:
    server_id = await active(house, house.alice)
    epoch = await epochs.begin(house.database, "sweep", 30_000)
    async with house.database.read() as tx:
        lease = await leases.get(tx, server_id)
    server = await server_of(house, server_id)
    assert lease is not None and lease.holder is None  # released: the token stays
    assert (await ask(house)).json() == {
        "epoch": epoch,
        "complete": True,
        "backends": [{"name": "lotus", "address": server.address, "port": 25565, "lease_token": lease.token}],
    }


async def test_tokens_only_grow(house: House) -> None:
    server_id = await active(house, house.alice)
    before = (await ask(house)).json()["backends"][0]["lease_token"]
    async with house.database.write() as tx:
        await leases.revoke(tx, server_id)
    assert (await ask(house)).json()["backends"][0]["lease_token"] > before


@pytest.mark.parametrize(
    "seen",
    [
        {"ready": False, "state": WorkloadState.STARTING},
        {"ready": None},
        {"ready": None, "reachable": False, "state": None},
        {"age_s": 151},
        {"age_s": -60},
    ],
    ids=["not ready", "unknown", "unreachable", "old", "from the future"],
)
async def test_only_proof_of_readiness_publishes(house: House, seen: dict[str, Any]) -> None:
    server_id = await active(house, house.alice)
    assert await names(house) == ["lotus"]
    await observed(house, server_id, **seen)
    assert await names(house) == []


@pytest.mark.parametrize("billing", list(BillingState))
async def test_a_suspended_customers_servers_are_left_out_at_once(house: House, billing: BillingState) -> None:
    await active(house, house.alice)
    await active(house, house.bob, name="fern")
    assert house.alice.customer_id is not None
    async with house.database.write() as tx:
        await customers.set_billing(tx, house.alice.customer_id, billing, "test")
    assert await names(house) == (["fern", "lotus"] if billing in (BillingState.ACTIVE, BillingState.PAST_DUE) else ["fern"])


async def test_a_withdrawn_edge_and_every_other_state_are_left_out(house: House) -> None:
    server_id = await active(house, house.alice)
    async with house.database.write() as tx:
        await servers.set_edge(tx, server_id, Edge.WITHDRAWN)
    assert await names(house) == []
    async with house.database.write() as tx:
        await servers.set_edge(tx, server_id, Edge.OPEN)
        await servers.set_state(tx, server_id, ServerState.SUSPENDED, "test")
    assert await names(house) == []


async def test_a_developer_container_is_no_backend(house: House) -> None:
    await active(house, house.alice, ctype="dev", flavor="debian", version="12")
    assert await names(house) == []


async def test_a_server_being_created_is_no_backend_even_if_it_says_ready(house: House) -> None:
    server_id, _ = await ordered(house.alice)
    await observed(house, server_id)
    assert await names(house) == []


@pytest.mark.parametrize("path", [BACKENDS, "/metrics"])
async def test_an_unreachable_database_is_an_error_never_an_empty_list(house: House, path: str, tmp_path: Path) -> None:
    await active(house, house.alice)
    await house.database.close()
    file = tmp_path / "zlh.db"
    file.rename(tmp_path / "away")
    file.mkdir()
    answer = await ask(house, path)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:zlh:problem:unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert "backends" not in answer.text and "zlh.db" not in answer.text


async def test_a_database_without_tables_is_an_error_too(house: House, tmp_path: Path) -> None:
    await house.database.close()
    (tmp_path / "zlh.db").unlink()
    assert (await ask(house)).status_code == 503


@pytest.mark.parametrize("path", [BACKENDS, "/metrics"])
async def test_without_a_configured_token_nobody_is_admitted(database: Database, path: str) -> None:
    async with build(database, Settings(api=ApiSettings())) as house:
        for token in ("", CONTROL_TOKEN, "None"):
            answer = await house.control.get(path, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401


async def test_metrics_name_every_state_and_count_answers(house: House) -> None:
    await active(house, house.alice)
    await ordered(house.bob, name="fern")
    await house.public.get("/api/servers")
    epoch = await epochs.begin(house.database, "sweep", 30_000)
    assert epoch is not None
    lines = (await ask(house, "/metrics")).text.splitlines()
    assert 'zlh_servers{state="active"} 1' in lines and 'zlh_servers{state="failed"} 0' in lines
    assert 'zlh_operations_live{state="queued"} 1' in lines
    assert 'zlh_api_responses_total{listener="public",status="202"} 2' in lines
    assert 'zlh_api_responses_total{listener="public",status="401"} 1' in lines
    kinds = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {line.split("{")[0].split()[0] for line in lines if not line.startswith("#")} <= kinds
