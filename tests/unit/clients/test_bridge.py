"""The bridge client against the lab's bridge, and against a peer that answers nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from flows.clients.bridge import BridgeClient
from flows.domain.sources import Registration
from flows.errors import (
    AmbiguousEffect,
    AutomationError,
    BadAnswer,
    BadInput,
    Busy,
    Conflict,
    Fenced,
    MisconfiguredSetting,
    RateLimited,
    Unauthorized,
    Unreachable,
)
from flows.lab import bridge
from flows.lab.bridge import BridgePart
from flows.lab.config import LabConfig
from flows.lab.faults import Faults, Mode
from flows.lab.world import World
from flows.settings import ProxySettings

TOKEN = "bridge-token"


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def lab(tmp_path: Path, faults: Faults) -> AsyncIterator[BridgePart]:
    config = LabConfig.model_validate(
        {
            "state_file": tmp_path / "lab.json",
            "control": {"token": "control-token"},
            "proxmox": {"ca_dir": tmp_path / "ca"},
            "bridge": {"token": TOKEN},
            "dns": {"tsig_secret": "c2VjcmV0"},
            "runner": {"project_dir": tmp_path / "project"},
        }
    )
    part = await bridge.start(config, World(), faults)
    yield part
    await part.stop()


def settings(url: str, **changes: Any) -> ProxySettings:
    values: dict[str, Any] = {"url": url, "token": SecretStr(TOKEN), "timeout_s": 3.0}
    return ProxySettings(**(values | changes))


@pytest.fixture
async def client(lab: BridgePart) -> AsyncIterator[BridgeClient]:
    made = BridgeClient(settings(lab.site.url))
    yield made
    await made.close()


async def test_a_backend_is_registered_and_deregistered(client: BridgeClient) -> None:
    assert (await client.view()).registrations == {}
    await client.register("alpha", "127.20.0.5", 25565, 10)
    await client.register("alpha", "127.20.0.5", 25565, 10)
    view = await client.view()
    assert view.registrations == {"alpha": Registration("alpha", "127.20.0.5", 25565)}
    assert view.uptime_s >= 0
    await client.deregister("alpha", 11)
    await client.deregister("alpha", 11)
    assert (await client.view()).registrations == {}


async def test_an_older_lease_token_is_fenced(client: BridgeClient) -> None:
    await client.register("alpha", "127.20.0.5", 25565, 10)
    with pytest.raises(Fenced, match="older"):
        await client.register("alpha", "127.20.0.6", 25565, 9)
    with pytest.raises(Fenced):
        await client.deregister("alpha", 9)
    assert (await client.view()).registrations["alpha"].address == "127.20.0.5"


async def test_an_address_that_is_none_is_bad_input(client: BridgeClient) -> None:
    with pytest.raises(BadInput, match="address"):
        await client.register("alpha", "alpha.example", 25565, 1)
    with pytest.raises(BadInput):
        await client.register("../status", "127.20.0.5", 25565, 1)


async def test_a_refused_token_names_the_setting(lab: BridgePart) -> None:
    client = BridgeClient(settings(lab.site.url, token=SecretStr("wrong-token")))
    for call in (client.view(), client.register("alpha", "127.20.0.5", 1, 1), client.deregister("alpha", 1)):
        with pytest.raises(Unauthorized, match="ZLH_PROXY__TOKEN") as caught:
            await call
        assert "wrong-token" not in str(caught.value)
    await client.close()


async def test_an_empty_token_names_the_setting(lab: BridgePart) -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_PROXY__TOKEN"):
        await BridgeClient(settings(lab.site.url, token=SecretStr(""))).view()


@pytest.mark.parametrize(
    "url", ["http://proxy.example:8760", "127.0.0.1:8760", "ftp://127.0.0.1", "http://u:p@127.0.0.1", "http://127.0.0.1:99999", ""]
)
def test_a_url_without_a_literal_address_names_the_setting(url: str) -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_PROXY__URL"):
        BridgeClient(settings(url))


async def test_a_read_is_tried_again_and_a_write_is_not(client: BridgeClient, lab: BridgePart, faults: Faults) -> None:
    faults.arm("bridge", Mode.UNREACHABLE, call="GET /servers", count=1)
    assert (await client.view()).registrations == {}
    faults.arm("bridge", Mode.UNREACHABLE, call="PUT *", count=1)
    with pytest.raises(AmbiguousEffect):
        await client.register("alpha", "127.20.0.5", 25565, 1)
    assert (await client.view()).registrations == {}


async def test_a_lost_answer_is_ambiguous_and_the_effect_is_there(client: BridgeClient, faults: Faults) -> None:
    faults.arm("bridge", Mode.LOSE_ANSWER, call="PUT *", count=1)
    with pytest.raises(AmbiguousEffect):
        await client.register("alpha", "127.20.0.5", 25565, 1)
    assert set((await client.view()).registrations) == {"alpha"}


async def test_a_hanging_bridge_ends_at_the_time_out(lab: BridgePart, faults: Faults) -> None:
    client = BridgeClient(settings(lab.site.url, timeout_s=0.2))
    faults.arm("bridge", Mode.HANG)
    with pytest.raises(Unreachable):
        await client.view()
    with pytest.raises(AmbiguousEffect):
        await client.deregister("alpha", 1)
    await client.close()


async def test_nobody_listening_is_unreachable_for_writes_too(lab: BridgePart) -> None:
    client = BridgeClient(settings(lab.site.url))
    await lab.stop()
    with pytest.raises(Unreachable, match="refused"):
        await client.register("alpha", "127.20.0.5", 25565, 1)
    await client.close()


@pytest.mark.parametrize(("leave", "body"), [((), b""), (frozenset({"b", "a"}), b'{"leave":["a","b"]}')])
async def test_rehydrate_names_what_is_to_be_left(leave: frozenset[str], body: bytes) -> None:
    sent: list[bytes] = []

    async def handle(request: web.Request) -> web.Response:
        sent.append(await request.read())
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/rehydrate", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    client = BridgeClient(settings(f"http://127.0.0.1:{runner.addresses[0][1]}"))
    await client.rehydrate(leave)
    await client.close()
    await runner.cleanup()
    assert sent == [body]


async def test_rehydrate_without_a_source_is_busy(client: BridgeClient) -> None:
    with pytest.raises(Busy):
        await client.rehydrate()


@pytest.fixture
async def peer() -> AsyncIterator[tuple[dict[str, Any], BridgeClient]]:
    """Answers every request with ``answer["status"]`` and ``answer["body"]``; ``/status`` well, unless told."""
    answer: dict[str, Any] = {"status": 200, "body": "", "uptime": '{"uptime_s": 1}'}

    async def handle(request: web.Request) -> web.Response:
        if request.path == "/status":
            return web.Response(text=answer["uptime"])
        return web.Response(status=answer["status"], text=answer["body"])

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    client = BridgeClient(settings(f"http://127.0.0.1:{runner.addresses[0][1]}"), max_answer_bytes=4096)
    yield answer, client
    await client.close()
    await runner.cleanup()


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "<html>",
        "{}",
        '{"servers": {}}',
        '{"servers": [1]}',
        '{"servers": [{"name": "a", "address": "127.0.0.1"}]}',
        '{"servers": [{"name": "a", "address": "127.0.0.1", "port": true}]}',
        '{"servers": [{"name": "a", "address": "127.0.0.1", "port": 70000}]}',
        '{"servers": [{"name": "a", "address": "here", "port": 1}]}',
        '{"servers": [{"name": "..", "address": "127.0.0.1", "port": 1}]}',
        '{"servers": [{"name": "a/b", "address": "127.0.0.1", "port": 1}]}',
        '{"servers": [{"name": "A b", "address": "127.0.0.1", "port": 1}]}',
        '{"servers": [{"name": "a", "address": "127.0.0.1", "port": 1}, {"name": "a", "address": "127.0.0.2", "port": 1}]}',
        '{"servers": [], "complete": false}',
        "[" * 3000,
        '{"servers": ["' + "x" * 5000 + '"]}',
    ],
)
async def test_a_spoilt_list_is_no_list(peer: tuple[dict[str, Any], BridgeClient], body: str) -> None:
    answer, client = peer
    answer["body"] = body
    with pytest.raises(BadAnswer):
        await client.view()


async def test_what_another_hand_registered_is_seen(peer: tuple[dict[str, Any], BridgeClient]) -> None:
    answer, client = peer
    answer["body"] = '{"servers": [{"name": "Lobby_1", "address": "127.0.0.1", "port": 1}], "uptime_s": 1}'
    assert set((await client.view()).registrations) == {"Lobby_1"}


@pytest.mark.parametrize("uptime", ["{}", '{"uptime_s": "1"}', '{"uptime_s": NaN}', '{"uptime_s": -1}', '{"uptime_s": true}'])
async def test_a_spoilt_status_is_a_bad_answer(peer: tuple[dict[str, Any], BridgeClient], uptime: str) -> None:
    answer, client = peer
    answer.update(body='{"servers": []}', uptime=uptime)
    with pytest.raises(BadAnswer):
        await client.view()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (412, Fenced), (422, BadInput), (428, BadInput), (401, Unauthorized), (409, Conflict), (429, RateLimited), (503, Busy), (502, Busy),
        (500, AmbiguousEffect), (404, MisconfiguredSetting), (301, MisconfiguredSetting),
    ],
)  # fmt: skip
async def test_refusals_by_status(peer: tuple[dict[str, Any], BridgeClient], status: int, expected: type[AutomationError]) -> None:
    answer, client = peer
    answer.update(status=status, body='{"detail": "because"}')
    with pytest.raises(expected) as caught:
        await client.register("alpha", "127.20.0.5", 1, 1)
    assert type(caught.value) is expected


async def test_an_oversized_answer_to_a_write_is_ambiguous(peer: tuple[dict[str, Any], BridgeClient]) -> None:
    answer, client = peer
    answer.update(body="x" * 5000)
    with pytest.raises(AmbiguousEffect):
        await client.register("alpha", "127.20.0.5", 1, 1)


async def test_a_certificate_that_nobody_we_know_signed_names_the_setting(tmp_path: Path) -> None:
    import ssl

    from flows.clients.ca import CertificateAuthority

    authority = CertificateAuthority(tmp_path / "ca")
    authority.ensure()
    certificate, key = authority.issue("bridge", "127.0.0.1")
    (tmp_path / "leaf.pem").write_text(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "leaf.pem")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"servers": [], "uptime_s": 1}'
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        stranger = BridgeClient(settings(url))
        with pytest.raises(MisconfiguredSetting, match="ZLH_PROXY__CA_FILE"):
            await stranger.view()
        with pytest.raises(MisconfiguredSetting, match="ZLH_PROXY__CA_FILE"):
            await BridgeClient(settings(url, ca_file=tmp_path / "none.pem")).view()
        friend = BridgeClient(settings(url, ca_file=tmp_path / "ca" / "ca.pem"))
        assert (await friend.view()).registrations == {}
        await stranger.close()
        await friend.close()
    finally:
        server.close()
        await server.wait_closed()
