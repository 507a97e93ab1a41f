"""The simulated proxy bridge over HTTP, its rehydrate against a real listener, and the players' front."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from aiohttp import web

from flows.errors import MisconfiguredSetting
from flows.lab.bridge import BridgePart, start
from flows.lab.config import LabConfig
from flows.lab.faults import Faults, Mode
from flows.lab.part import Manipulable, Part, PartError, Restartable
from flows.lab.serving import Site
from flows.lab.world import World

Eventually = Callable[..., Awaitable[None]]
BODY = {"address": "127.20.9.1", "port": 25565}


class Product:
    """The product's control listener: answers what a test sets."""

    def __init__(self) -> None:
        self.answer: Any = {"epoch": 1, "complete": True, "backends": []}
        self.status = 200
        self.asked: list[str | None] = []
        self.gate: asyncio.Event | None = None
        self.site = Site(("127.0.0.1", 0), self._build)

    def _build(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/internal/proxy/backends", self._serve)
        return app

    async def _serve(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers.get("Authorization"))
        answer = self.answer
        if self.gate is not None:
            await self.gate.wait()
        return web.json_response(answer, status=self.status)


def backend(name: str, token: int = 1, **fields: Any) -> dict[str, Any]:
    return {"name": name, "address": "127.20.9.1", "port": 25565, "lease_token": token, **fields}


@pytest.fixture
async def product() -> AsyncIterator[Product]:
    product = Product()
    await product.site.open()
    yield product
    await product.site.close()


@pytest.fixture
async def part(lab_config: Callable[..., LabConfig], world: World, faults: Faults) -> AsyncIterator[BridgePart]:
    part = await start(lab_config(), world, faults)
    yield part
    await part.stop()


@pytest.fixture
async def fed(lab_config: Callable[..., LabConfig], world: World, faults: Faults, product: Product) -> AsyncIterator[BridgePart]:
    """A bridge that rehydrates from ``product``."""
    config = lab_config(bridge={"backends_url": product.site.url, "backends_token": "product-token", "rehydrate_retry_s": 0.02})
    part = await start(config, world, faults)
    yield part
    await part.stop()


@pytest.fixture
async def http(part: BridgePart) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=part.endpoints["url"], headers={"Authorization": "Bearer bridge-token"}) as client:
        yield client


def lease(token: int) -> dict[str, str]:
    return {"X-ZLH-Lease-Token": str(token)}


def names(part: BridgePart) -> list[str]:
    return sorted(server["name"] for server in part.inspect()["servers"])


async def rehydrate(part: BridgePart, leave: Any = None) -> httpx.Response:
    async with httpx.AsyncClient(headers={"Authorization": "Bearer bridge-token"}) as client:
        return await client.post(f"{part.endpoints['url']}/rehydrate", json=None if leave is None else {"leave": leave})


async def test_it_is_a_part_that_restarts_and_can_be_manipulated(part: BridgePart) -> None:
    assert isinstance(part, Part) and isinstance(part, Restartable) and isinstance(part, Manipulable)


async def test_register_list_and_deregister(http: httpx.AsyncClient) -> None:
    assert (await http.get("/servers")).json() == {"servers": [], "complete": True}
    assert (await http.put("/servers/mc1", json=BODY, headers=lease(5))).status_code == 200
    assert (await http.get("/servers")).json() == {"servers": [{"name": "mc1", **BODY, "lease_token": 5}], "complete": True}
    assert (await http.delete("/servers/mc1", headers=lease(5))).status_code == 204
    assert (await http.delete("/servers/mc1", headers=lease(5))).status_code == 204
    assert (await http.get("/servers")).json() == {"servers": [], "complete": True}


@pytest.mark.parametrize("token", [None, "Bearer wrong", "bridge-token"])
async def test_nothing_without_the_token(part: BridgePart, token: str | None) -> None:
    async with httpx.AsyncClient(base_url=part.endpoints["url"], headers={"Authorization": token} if token else {}) as http:
        for method, path in [("GET", "/servers"), ("PUT", "/servers/x"), ("GET", "/metrics"), ("GET", "/status"), ("POST", "/rehydrate")]:
            assert (await http.request(method, path, json=BODY)).status_code == 401
    assert part.inspect()["calls"] == []


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("mc1", {"address": "proxy.example", "port": 25565}),
        ("mc1", {"address": "127.20.9.999", "port": 25565}),
        ("mc1", {"port": 25565}),
        ("mc1", {"address": "127.20.9.1", "port": 0}),
        ("mc1", {"address": "127.20.9.1", "port": 65536}),
        ("mc1", {"address": "127.20.9.1", "port": "25565"}),
        ("mc1", {"address": "127.20.9.1", "port": True}),
        ("MC_1", BODY),
    ],
)
async def test_bad_registrations_are_422(http: httpx.AsyncClient, part: BridgePart, name: str, body: dict[str, Any]) -> None:
    answer = await http.put(f"/servers/{name}", json=body, headers=lease(5))
    assert answer.status_code == 422 and answer.headers["content-type"].startswith("application/problem+json")
    assert names(part) == []
    assert (await http.put("/servers/mc1", json=BODY, headers=lease(1))).status_code == 200  # a refused call fences nobody


async def test_missing_or_malformed_lease_tokens_and_bodies(http: httpx.AsyncClient) -> None:
    assert (await http.put("/servers/mc1", json=BODY)).status_code == 428
    assert (await http.delete("/servers/mc1")).status_code == 428
    assert (await http.put("/servers/mc1", json=BODY, headers={"X-ZLH-Lease-Token": "1.5"})).status_code == 422
    assert (await http.put("/servers/mc1", content=b"{", headers=lease(1))).status_code == 400
    assert (await http.put("/servers/mc1", json=[], headers=lease(1))).status_code == 400


async def test_lower_lease_tokens_are_refused_also_after_a_deregistration(http: httpx.AsyncClient, part: BridgePart) -> None:
    await http.put("/servers/mc1", json=BODY, headers=lease(5))
    assert (await http.delete("/servers/mc1", headers=lease(4))).status_code == 412
    assert names(part) == ["mc1"]
    await http.delete("/servers/mc1", headers=lease(6))
    refused = await http.put("/servers/mc1", json=BODY, headers=lease(5))
    assert refused.status_code == 412 and refused.json()["highest"] == 6
    assert (await http.put("/servers/mc2", json=BODY, headers=lease(1))).status_code == 200  # fenced per name
    calls = [(c["method"], c["name"], c["lease_token"], c["status"], c["effect"]) for c in part.inspect()["calls"]]
    assert calls == [
        ("PUT", "mc1", 5, 200, True), ("DELETE", "mc1", 4, 412, False), ("DELETE", "mc1", 6, 204, True),
        ("PUT", "mc1", 5, 412, False), ("PUT", "mc2", 1, 200, True),
    ]  # fmt: skip


async def test_the_same_registration_again_has_no_effect(http: httpx.AsyncClient, part: BridgePart) -> None:
    for token in (5, 5, 6):
        await http.put("/servers/mc1", json=BODY, headers=lease(token))
    assert [c["effect"] for c in part.inspect()["calls"]] == [True, False, False]


async def test_status_and_metrics(http: httpx.AsyncClient) -> None:
    await http.put("/servers/mc1", json=BODY, headers=lease(5))
    status = (await http.get("/status")).json()
    assert status["backends"] == 1 and status["players"] == 0 and status["uptime_s"] >= 0
    assert status["rehydrate"] == {"at": None, "outcome": "never", "epoch": 0}
    assert "zlh_bridge_backends 1" in (await http.get("/metrics")).text


async def test_a_restart_forgets_everything_and_keeps_the_port(http: httpx.AsyncClient, part: BridgePart) -> None:
    await http.put("/servers/mc1", json=BODY, headers=lease(5))
    endpoints = dict(part.endpoints)
    await part.restart()
    assert part.endpoints == endpoints
    assert (await http.get("/servers")).json() == {"servers": [], "complete": True}
    assert (await http.put("/servers/mc1", json=BODY, headers=lease(1))).status_code == 200
    assert part.inspect()["restarts"] == 1 and len(part.inspect()["calls"]) == 2


async def test_it_rehydrates_at_start_and_after_a_restart(fed: BridgePart, product: Product, eventually: Eventually) -> None:
    await eventually(lambda: fed.inspect()["outcome"] == "complete")
    product.answer = {"epoch": 2, "complete": True, "backends": [backend("mc1", 7)]}
    await fed.restart()
    await eventually(lambda: names(fed) == ["mc1"])
    assert fed.inspect()["tokens"] == {"mc1": 7} and fed.inspect()["epoch"] == 2
    assert set(product.asked) == {"Bearer product-token"}


async def test_rehydrate_gives_the_starting_values_of_the_fence(fed: BridgePart, product: Product) -> None:
    product.answer = {"epoch": 2, "complete": True, "backends": [backend("mc1", 7)]}
    assert (await rehydrate(fed)).json() == {"outcome": "complete", "backends": 1, "epoch": 2}
    async with httpx.AsyncClient(base_url=fed.endpoints["url"], headers={"Authorization": "Bearer bridge-token"}) as http:
        assert (await http.delete("/servers/mc1", headers=lease(6))).status_code == 412


async def test_names_that_are_to_be_left_stay_as_they_are(fed: BridgePart, product: Product) -> None:
    """A bulk repair must not touch what others hold; a start of its own takes the whole list."""
    product.answer = {"epoch": 2, "complete": True, "backends": [backend("held", 5), backend("gone", 5), backend("off", 5)]}
    await rehydrate(fed)
    product.answer = {"epoch": 3, "complete": True, "backends": [backend("held", 6, port=1), backend("new", 6), backend("absent", 6)]}
    assert (await rehydrate(fed, leave=["held", "gone", "absent"])).status_code == 200
    assert {s["name"]: s["port"] for s in fed.inspect()["servers"]} == {"held": 25565, "gone": 25565, "new": 25565}
    assert fed.inspect()["tokens"]["held"] == 5
    product.status = 503
    asked = len(product.asked)
    assert (await rehydrate(fed, leave=["held"])).status_code == 502
    assert len(product.asked) == asked + 1 and fed._rehydrating is not None and fed._rehydrating.done()
    product.status = 200
    assert (await rehydrate(fed)).status_code == 200
    assert names(fed) == ["absent", "held", "new"]


@pytest.mark.parametrize("leave", ["held", [1], {"held": True}])
async def test_what_is_no_list_of_names_is_422(fed: BridgePart, leave: Any) -> None:
    assert (await rehydrate(fed, leave=leave)).status_code == 422


async def test_a_complete_empty_list_means_none(fed: BridgePart, product: Product) -> None:
    product.answer = {"epoch": 2, "complete": True, "backends": [backend("mc1"), backend("mc2")]}
    await rehydrate(fed)
    product.answer = {"epoch": 3, "complete": True, "backends": []}
    assert (await rehydrate(fed)).status_code == 200
    assert names(fed) == []


@pytest.mark.parametrize(
    ("status", "answer", "outcome"),
    [
        (503, {"detail": "database"}, "error"),
        (401, {}, "error"),
        (200, {"epoch": 3, "complete": False, "backends": []}, "incomplete"),
        (200, {"epoch": 1, "complete": True, "backends": []}, "older"),
        (200, {"epoch": 3, "backends": []}, "malformed"),
        (200, {"epoch": 3, "complete": "yes", "backends": []}, "malformed"),
        (200, {"epoch": 3, "complete": True, "backends": [{"name": "mc2", "address": "mc2.example", "port": 1, "lease_token": 1}]}, "malformed"),
        (200, [], "malformed"),
    ],
)
async def test_anything_else_keeps_what_is_there_and_retries(
    fed: BridgePart, product: Product, eventually: Eventually, status: int, answer: Any, outcome: str
) -> None:
    product.answer = {"epoch": 2, "complete": True, "backends": [backend("mc1")]}
    await rehydrate(fed)
    product.status, product.answer = status, answer
    refused = await rehydrate(fed)
    assert refused.status_code == 502 and outcome in refused.json()["detail"]
    assert names(fed) == ["mc1"] and fed.inspect()["outcome"].startswith(outcome)
    asked = len(product.asked)
    await eventually(lambda: len(product.asked) > asked)
    assert names(fed) == ["mc1"]
    product.status, product.answer = 200, {"epoch": 4, "complete": True, "backends": [backend("mc3")]}
    await eventually(lambda: names(fed) == ["mc3"])


async def test_an_unreachable_product_is_asked_until_it_answers(fed: BridgePart, product: Product, eventually: Eventually) -> None:
    await product.site.close()
    await fed.restart()
    await eventually(lambda: fed.inspect()["outcome"].startswith("error"))
    product.answer = {"epoch": 5, "complete": True, "backends": [backend("mc1")]}
    await product.site.open()
    await eventually(lambda: names(fed) == ["mc1"])


async def test_a_listing_does_not_undo_what_changed_while_it_was_under_way(fed: BridgePart, product: Product, eventually: Eventually) -> None:
    product.answer = {"epoch": 2, "complete": True, "backends": [backend("old", 5), backend("gone", 5)]}
    await rehydrate(fed)
    product.gate = asyncio.Event()
    asked = len(product.asked)
    pull = asyncio.create_task(rehydrate(fed))
    await eventually(lambda: len(product.asked) > asked)  # the product has made up its answer
    async with httpx.AsyncClient(base_url=fed.endpoints["url"], headers={"Authorization": "Bearer bridge-token"}) as http:
        assert (await http.put("/servers/new", json=BODY, headers=lease(9))).status_code == 200
        assert (await http.delete("/servers/gone", headers=lease(5))).status_code == 204  # under the very lease that the listing names
    product.gate.set()
    assert (await pull).status_code == 200
    assert names(fed) == ["new", "old"]


async def test_a_listing_older_than_a_names_lease_does_not_bring_it_back(fed: BridgePart, product: Product) -> None:
    async with httpx.AsyncClient(base_url=fed.endpoints["url"], headers={"Authorization": "Bearer bridge-token"}) as http:
        await http.delete("/servers/mc1", headers=lease(9))
    product.answer = {"epoch": 2, "complete": True, "backends": [backend("mc1", 8)]}
    await rehydrate(fed)
    assert names(fed) == []


@pytest.mark.parametrize("url", ["http://control.example:8701", "http:///x", "ftp://127.0.0.1:1"])
async def test_it_refuses_to_start_with_anything_but_a_literal_address(
    lab_config: Callable[..., LabConfig], world: World, faults: Faults, url: str
) -> None:
    with pytest.raises(MisconfiguredSetting, match=r"bridge\.backends_url"):
        await start(lab_config(bridge={"backends_url": url}), world, faults)


async def test_without_a_source_it_says_so(http: httpx.AsyncClient) -> None:
    answer = await http.post("/rehydrate")
    assert answer.status_code == 503 and "backends_url" in answer.json()["detail"]


async def test_the_source_can_be_set_later(part: BridgePart, product: Product, eventually: Eventually) -> None:
    product.answer = {"epoch": 2, "complete": True, "backends": [backend("mc1")]}
    await part.manipulate("configure", {"backends_url": product.site.url, "token": "later"})
    await eventually(lambda: names(part) == ["mc1"])
    assert product.asked == ["Bearer later"]
    with pytest.raises(PartError, match="backends_url"):
        await part.manipulate("configure", {"backends_url": "http://control.example"})


async def test_registrations_can_be_changed_behind_the_products_back(http: httpx.AsyncClient, part: BridgePart) -> None:
    await http.put("/servers/mc1", json=BODY, headers=lease(5))
    await part.manipulate("register", {"name": "stray", "address": "127.20.9.9", "port": 1})
    await part.manipulate("deregister", {"name": "mc1"})
    assert names(part) == ["stray"] and len(part.inspect()["calls"]) == 1
    for op, arguments in [("deregister", {"name": "mc1"}), ("register", {"name": "x", "address": "x", "port": 1}), ("explode", {})]:
        with pytest.raises(PartError):
            await part.manipulate(op, arguments)


async def test_a_held_call_arrives_late(http: httpx.AsyncClient, part: BridgePart, faults: Faults, eventually: Eventually) -> None:
    fault = faults.arm("bridge", Mode.HOLD, call="PUT *", count=1)
    held = asyncio.create_task(http.put("/servers/mc1", json=BODY, headers=lease(5)))
    await eventually(lambda: fault.hits == 1)
    assert (await http.put("/servers/mc1", json=BODY, headers=lease(6))).status_code == 200
    assert not held.done()
    assert faults.clear(fault.id) == 1
    assert (await held).status_code == 412
    assert [(c["lease_token"], c["status"]) for c in part.inspect()["calls"]] == [(6, 200), (5, 412)]


async def test_a_held_call_arrives_though_its_sender_is_gone(
    http: httpx.AsyncClient, part: BridgePart, faults: Faults, eventually: Eventually
) -> None:
    fault = faults.arm("bridge", Mode.HOLD, call="PUT *", count=1)
    held = asyncio.create_task(http.put("/servers/mc1", json=BODY, headers=lease(5)))
    await eventually(lambda: fault.hits == 1)
    await asyncio.sleep(0.05)  # its body is on its way
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    await asyncio.sleep(0.05)  # the end of the connection, too
    assert names(part) == []
    faults.clear(fault.id)
    await eventually(lambda: names(part) == ["mc1"])


async def test_a_lost_answer_comes_after_the_effect(http: httpx.AsyncClient, part: BridgePart, faults: Faults) -> None:
    faults.arm("bridge", Mode.LOSE_ANSWER, call="PUT *", count=1)
    with pytest.raises(httpx.TransportError):
        await http.put("/servers/mc1", json=BODY, headers=lease(5))
    assert names(part) == ["mc1"]
    faults.arm("bridge", Mode.ERROR, call="PUT *", count=1, status=500)
    assert (await http.put("/servers/mc2", json=BODY, headers=lease(5))).status_code == 500
    assert names(part) == ["mc1"]


async def test_a_partial_list_says_that_it_is_not_whole(http: httpx.AsyncClient, part: BridgePart, faults: Faults) -> None:
    for name in ("mc1", "mc2"):
        await http.put(f"/servers/{name}", json=BODY, headers=lease(5))
    faults.arm("bridge", Mode.PARTIAL, call="GET /servers", count=1)
    partial = (await http.get("/servers")).json()
    assert len(partial["servers"]) == 1 and partial["complete"] is False
    assert len((await http.get("/servers")).json()["servers"]) == 2


def handshake(host: str, intent: int = 2) -> bytes:
    name = host.encode()
    body = b"\x00" + b"\xff\x05" + bytes([len(name)]) + name + (25565).to_bytes(2, "big") + bytes([intent])
    return bytes([len(body)]) + body


@pytest.fixture
async def game(part: BridgePart) -> AsyncIterator[asyncio.Server]:
    """A game server that echoes, registered as mc1."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(b"echo:" + data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    await part.manipulate("register", {"name": "mc1", "address": "127.0.0.1", "port": server.sockets[0].getsockname()[1]})
    yield server
    server.close()


@pytest.mark.parametrize("host", ["mc1.play.example", "MC1.play.example.", "mc1.play.example\0FML2\0", "mc1"])
async def test_a_player_reaches_the_backend_of_the_name_asked_for(part: BridgePart, game: asyncio.Server, host: str, eventually: Eventually) -> None:
    reader, writer = await asyncio.open_connection(part.front.host, part.front.port)
    first = handshake(host)
    writer.write(first)
    assert await asyncio.wait_for(reader.readexactly(5 + len(first)), 5) == b"echo:" + first
    assert part.inspect()["players"] == 1
    writer.write(b"hello")
    assert await asyncio.wait_for(reader.readexactly(10), 5) == b"echo:hello"
    writer.close()
    await eventually(lambda: part.inspect()["players"] == 0)


@pytest.mark.parametrize(
    "data", [handshake("mc2.play.example"), handshake("mc1.other.example"), b"\xfe\x01", b"\xff\xff\xff\xff\xff", b"\x03\x01\x01\x01"]
)
async def test_strangers_are_hung_up_on(part: BridgePart, game: asyncio.Server, data: bytes) -> None:
    reader, writer = await asyncio.open_connection(part.front.host, part.front.port)
    writer.write(data)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_restart_cuts_players_off(part: BridgePart, game: asyncio.Server) -> None:
    reader, writer = await asyncio.open_connection(part.front.host, part.front.port)
    writer.write(handshake("mc1.play.example"))
    await asyncio.wait_for(reader.read(5), 5)
    await part.restart()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await asyncio.wait_for(reader.readexactly(10_000), 5)
    assert part.inspect()["players"] == 0
    writer.close()
