"""Every route of both listeners: where it is, who may use it, and that it is nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from flows.api.app import control_app, public_app
from tests.support.house import CONTROL_TOKEN, House

PUBLIC = {
    "POST /api/servers/create",
    "POST /api/instances",
    "GET /api/servers",
    "GET /api/servers/{id}",
    "GET /api/servers/{id}/status",
    "POST /api/servers/{id}/start",
    "POST /api/servers/{id}/stop",
    "POST /api/servers/{id}/restart",
    "POST /api/servers/{id}/deploy-agent",
    "POST /api/servers/{id}/restart-agent",
    "DELETE /api/servers/{id}",
    "GET /api/operations/{id}",
    "POST /api/operations/{id}/cancel",
    "POST /api/operations/{id}/retry",
    "GET /api/catalog/runtimes",
    "GET /healthz",
    "GET /api/openapi.json",
}
CONTROL = {
    "GET /internal/proxy/backends",
    "GET /metrics",
    "GET /api/admin/customers",
    "POST /api/admin/customers",
    "POST /api/admin/customers/{id}/suspend",
    "POST /api/admin/customers/{id}/resume",
    "GET /api/admin/brakes",
    "POST /api/admin/brakes/pause",
    "POST /api/admin/brakes/resume",
}
OPEN = {"GET /healthz", "GET /api/openapi.json"}
SOME_ID = "0198c0de-0000-7000-8000-000000000000"


def routes(app: FastAPI) -> Iterator[str]:
    """Every method and path that an application answers, its schema included; nothing may hide behind a mount."""

    def walk(found: object) -> Iterator[tuple[str, str]]:
        for route in found:  # type: ignore[attr-defined]  # a router's list
            inner = getattr(getattr(route, "original_router", None), "routes", None)
            if inner is not None:
                yield from walk(inner)
            else:
                for method in route.methods - {"HEAD"}:
                    yield method, route.path

    for method, path in walk(app.router.routes):
        yield f"{method} {re.sub(r'{[^}]+}', '{id}', path)}"


def call(route: str) -> tuple[str, str]:
    method, path = route.split(" ")
    return method, path.replace("{id}", SOME_ID)


def test_each_listener_serves_exactly_its_routes(house: House) -> None:
    assert set(routes(public_app(house.deps))) == PUBLIC
    assert set(routes(control_app(house.deps))) == CONTROL
    assert not PUBLIC & CONTROL


@pytest.mark.parametrize("route", sorted(PUBLIC))
async def test_public_routes_are_unknown_to_the_control_listener(house: House, route: str) -> None:
    for token in (house.operator.token, CONTROL_TOKEN):
        answer = await house.control.request(*call(route), headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:zlh:problem:not_found")


@pytest.mark.parametrize("route", sorted(CONTROL))
async def test_control_routes_are_unknown_to_the_public_listener(house: House, route: str) -> None:
    for token in (house.admin.token, CONTROL_TOKEN):
        answer = await house.public.request(*call(route), headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:zlh:problem:not_found")


@pytest.mark.parametrize("route", sorted((PUBLIC | CONTROL) - OPEN))
@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer zlh_nobody", "Basic eDp5", "bearer  "])
async def test_nothing_is_answered_without_a_token(house: House, route: str, authorization: str) -> None:
    client = house.public if route in PUBLIC else house.control
    method, path = call(route)
    body = {"json": {}} if method == "POST" else {}
    answer = await client.request(method, path, headers={"Authorization": authorization} if authorization else {}, **body)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("route", sorted(r for r in (PUBLIC | CONTROL) - OPEN if r.startswith("POST")))
@pytest.mark.parametrize("body", [b"{bad", b"\xff", b"[" * 30_000, b'{"a": ' + b"9" * 5_000 + b"}"], ids=["not JSON", "not UTF-8", "deep", "long"])
async def test_who_asks_comes_before_what_is_asked(house: House, route: str, body: bytes) -> None:
    client = house.public if route in PUBLIC else house.control
    method, path = call(route)
    headers = {"Content-Type": "application/json"}
    answer = await client.request(method, path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (401, "urn:zlh:problem:unauthenticated")
    if "/admin/" in route:
        answer = await client.request(method, path, content=body, headers=house.alice.headers(**headers))
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:zlh:problem:forbidden")


async def test_a_request_counts_once_against_its_tokens_rate(house: House) -> None:
    await house.alice.get("/api/servers")
    counted = {key: counts[1] for key, counts in house.deps.rate._counts.items() if key.startswith("token:")}
    assert list(counted.values()) == [1]


@pytest.mark.parametrize("path", ["/api/servers/{id}", "/api/servers/{id}/status", "/api/servers/create", "/api/admin/brakes"])
async def test_405_names_every_method_of_the_path(house: House, path: str) -> None:
    client = house.control if "/admin/" in path else house.public
    answer = await client.put(path.replace("{id}", SOME_ID), headers=house.admin.headers())
    methods = {route.split(" ")[0] for route in PUBLIC | CONTROL if route.split(" ")[1] == path}
    assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, methods)


@pytest.mark.parametrize("route", sorted(r for r in CONTROL if "/admin/" in r))
async def test_a_customer_is_no_admin_and_neither_is_a_machine(house: House, route: str) -> None:
    method, path = call(route)
    body = {"json": {}} if method == "POST" else {}
    customer = await house.control.request(method, path, headers={"Authorization": f"Bearer {house.alice.token}"}, **body)
    machine = await house.control.request(method, path, headers={"Authorization": f"Bearer {CONTROL_TOKEN}"}, **body)
    assert (customer.status_code, machine.status_code) == (403, 401)


@pytest.mark.parametrize("route", sorted(r for r in PUBLIC | CONTROL if r.startswith("POST") and f"GET {r[5:]}" not in PUBLIC | CONTROL))
async def test_a_get_on_a_post_route_is_405_and_changes_nothing(house: House, route: str) -> None:
    client, token = (house.public, house.alice.token) if route in PUBLIC else (house.control, house.operator.token)
    answer = await client.get(call(route)[1], headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["type"]) == (405, "urn:zlh:problem:method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_the_schema_describes_every_public_route(house: House) -> None:
    app = public_app(house.deps)
    paths = app.openapi()["paths"]
    described = {f"{method.upper()} {re.sub(r'{[^}]+}', '{id}', path)}" for path, methods in paths.items() for method in methods}
    assert described == PUBLIC - {"GET /api/openapi.json"}
