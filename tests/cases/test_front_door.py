"""The front door's table as data: each ``front_door/<answer>-<case>.yml`` is one request, and everything it must come to.

``given`` is what differs from a house with room, two customers on plan ``basic`` and a catalog (see ``tests/support/house.py``); ``before``
are requests made first, with their status and what then ``becomes`` of their server; ``then`` changes the house between those and the request.
``send`` changes a good order (null leaves a field out). ``recorded`` counts rows afterwards: a refusal leaves none behind.
"""

from __future__ import annotations

import asyncio
import base64
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import func, select, update

from flows.domain.node import Node
from flows.domain.server import BillingState
from flows.settings import NetworkSettings, Settings, VmidSettings
from flows.state import control, customers, nodes, tokens
from flows.state import tables as t
from flows.state.customers import PlanLimits
from flows.state.database import Database
from tests.support.house import CONTROL_TOKEN, House, build, new_database, new_settings, order

HERE = Path(__file__).parent / "front_door"
CASES = sorted(HERE.glob("*.yml"))
TABLES = {"servers": t.servers, "operations": t.operations, "attempts": t.attempts, "vmids": t.vmids, "addresses": t.addresses}
#: Every row of the table in the specification; a case names the row that it is of.
ROWS = ("202 committed", "202 for a repeat", "401", "403", "402", "409 same nonce", "409 name_taken", "422", "429 quota", "503")


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
async def test_case(path: Path, tmp_path: Path) -> None:
    case = yaml.safe_load(await asyncio.to_thread(path.read_text))
    given = case.get("given", {})
    database = await new_database(tmp_path)
    try:
        async with build(database, _settings(given)) as house:
            await _prepare(house, given)
            earlier = [await _request(house, step, path=step.get("path", "/api/servers/create")) for step in case.get("before", [])]
            for step, answer in zip(case.get("before", []), earlier, strict=True):
                assert answer.status_code == step["expect"], answer.text
                await _become(house, answer, step.get("becomes"))
            await _prepare(house, case.get("then", {}))
            answer = await _request(house, case, path=case.get("path", "/api/servers/create"))
            _compare(answer, case["expect"], earlier)
            await _return(house)
            assert {name: await _count(database, name) for name in case["expect"]["recorded"]} == case["expect"]["recorded"]
    finally:
        await database.close()


def test_every_row_of_the_table_has_a_case() -> None:
    rows = [yaml.safe_load(path.read_text())["row"] for path in CASES]
    assert [row for row in ROWS if not any(r.startswith(row) for r in rows)] == []


def test_every_field_of_an_order_has_a_case_of_its_own() -> None:
    from flows.api.models import CreateBody

    named = {f.split(".")[0] for path in CASES for f in yaml.safe_load(path.read_text())["expect"].get("fields", ())}
    assert set(CreateBody.model_fields) <= named


def _settings(given: dict[str, Any]) -> Settings:
    settings = new_settings(**({"requests_per_minute": given["requests_per_minute"]} if "requests_per_minute" in given else {}))
    if given.get("own_address"):  # each request from another address, so that only the token's own rate can refuse
        settings = settings.model_copy(update={"api": settings.api.model_copy(update={"trusted_proxies": ("127.0.0.1",)})})
    if "vmids" in given:
        settings = settings.model_copy(update={"vmid": VmidSettings(first=10_000, last=10_000 + given["vmids"] - 1)})
    if "pool" in given:
        settings = settings.model_copy(update={"network": NetworkSettings(pool=given["pool"], gateway=given["gateway"])})
    return settings


async def _prepare(house: House, change: dict[str, Any]) -> None:
    if not change:
        return
    async with house.database.write() as tx:
        if "plan" in change:
            limits = {"servers": 10, "memory_mb": 100_000, "disk_gb": 1_000, "backups": 3} | change["plan"]
            await customers.put_plan(tx, PlanLimits("basic", **limits))
        if "billing" in change:
            assert house.alice.customer_id is not None
            await customers.set_billing(tx, house.alice.customer_id, BillingState(change["billing"]), "test")
        if "node" in change:
            await tx.execute(t.nodes.delete())
            if change["node"] is not None:
                full = {"memory_mb": 65_536, "disk_gb": 1_000, "cores": 16, "templates": {"fabric": 9001, "debian": 9002}} | change["node"]
                await nodes.put(tx, Node(name="pve1", storage="local-zfs", bridge="vmbr1", **full))
        if change.get("intake") == "closed":
            await control.set_intake_closed(tx, True, "test")
    if "catalog" in change:
        house.catalog.down = change["catalog"] == "down"
        house.catalog.entries.clear()
        house.deps.promoted.forget()  # what was remembered for a moment is older than this change
    if change.get("database") == "gone":
        await house.database.close()
        where = _file(house)
        where.rename(where.with_suffix(".away"))
        where.mkdir()


async def _return(house: House) -> None:
    where = _file(house)
    if where.is_dir():
        await house.database.close()
        where.rmdir()
        where.with_suffix(".away").rename(where)


def _file(house: House) -> Path:
    assert house.database.url.database is not None
    return Path(house.database.url.database)


async def _request(house: House, case: dict[str, Any], path: str) -> Any:
    headers = await _authorization(house, case.get("as", "alice"))
    if house.deps.settings.api.trusted_proxies:
        house.public.params = {}
        headers["X-Forwarded-For"] = f"192.0.2.{len(house.deps.rate._counts) + 1}"
    if "raw" in case:
        return await house.public.post(path, content=case["raw"], headers=headers | {"Content-Type": "application/json"})
    if "raw_hex" in case or "raw_repeated" in case:
        content = bytes.fromhex(str(case["raw_hex"])) if "raw_hex" in case else _repeated(**case["raw_repeated"])
        return await house.public.post(path, content=content, headers=headers | {"Content-Type": "application/json"})
    if "raw_size" in case:
        return await house.public.post(path, content=b" " * case["raw_size"], headers=headers | {"Content-Type": "application/json"})
    body = order(**case.get("send", {})) | case.get("raw_changes", {})
    if "for_customer" in case:
        body["customer_id"] = getattr(house, case["for_customer"]).customer_id
    return await house.public.post(path, json=body, headers=headers)


def _repeated(text: str, times: int, before: str = "", after: str = "") -> bytes:
    return (before + text * times + after).encode()


async def _authorization(house: House, who: str) -> dict[str, str]:
    if who in ("alice", "bob", "admin"):
        return {"Authorization": f"Bearer {getattr(house, who).token}"}
    if who == "nobody":
        return {}
    if who == "basic":
        return {"Authorization": "Basic " + base64.b64encode(f"x:{house.alice.token}".encode()).decode()}
    if who == "control":
        return {"Authorization": f"Bearer {CONTROL_TOKEN}"}
    if who == "stranger":
        return {"Authorization": "Bearer zlh_" + "A" * 43}
    async with house.database.write() as tx:
        expires = tx.now if who == "expired" else None
        token_id, plaintext = await tokens.create(tx, customer_id=house.alice.customer_id, role="customer", label=who, expires_at=expires)
        if who == "revoked":
            await tokens.revoke(tx, token_id)
    return {"Authorization": f"Bearer {plaintext}"}


async def _become(house: House, answer: Any, state: str | None) -> None:
    """What the executor makes of it, told in short."""
    if state is None:
        return
    ids = answer.json()["operation"]
    async with house.database.write() as tx:
        name = None if state == "failed" else t.servers.c.name
        await tx.execute(update(t.servers).where(t.servers.c.id == ids["server_id"]).values(state=state, live_name=name))
        if state == "failed":
            await tx.execute(update(t.operations).where(t.operations.c.id == ids["id"]).values(state="failed", live_server=None))


def _compare(answer: Any, expected: dict[str, Any], earlier: list[Any]) -> None:
    body = answer.json()
    assert answer.status_code == expected["status"], body
    if "type" in expected:
        assert answer.headers["content-type"] == "application/problem+json"
        assert (body["type"], body["status"]) == (f"urn:zlh:problem:{expected['type']}", expected["status"])
    if "fields" in expected:
        assert sorted(e["field"] for e in body["errors"]) == expected["fields"]
        assert expected.get("detail", "") in body["errors"][0]["detail"]
        assert all(e["detail"] for e in body["errors"])
    for name, pattern in expected.get("headers", {}).items():
        assert re.search(pattern, answer.headers.get(name, "")), answer.headers
    if "same_as" in expected:
        assert body["operation"]["id"] == earlier[expected["same_as"]].json()["operation"]["id"]
        assert answer.headers["location"] == earlier[expected["same_as"]].headers["location"]
    if "names_operation" in expected:
        assert body["operation_id"] == earlier[expected["names_operation"]].json()["operation"]["id"]
    _contains(body, expected.get("body", {}))


def _contains(body: Any, wanted: Any) -> None:
    for key, value in wanted.items():
        if isinstance(value, dict):
            _contains(body[key], value)
        else:
            assert body[key] == value, (key, body)


async def _count(database: Database, table: str) -> int:
    async with database.read() as tx:
        return int((await tx.execute(select(func.count()).select_from(TABLES[table]))).scalar_one())
