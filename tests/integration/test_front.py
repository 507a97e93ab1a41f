"""A real player through the lab's bridge to a real game server, by host name: as in front of Velocity. Loopback, no container."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcstatus import JavaServer
from mcstatus.responses import JavaStatusResponse

from flows.lab.bridge import BridgePart, start
from flows.lab.config import LabConfig
from flows.lab.faults import Faults
from flows.lab.world import World
from tests.support.bot import Player, play
from tests.support.games import GameServer

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]
ZONE = "play.example"


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GameServer]:
    game = GameServer(tmp_path_factory.mktemp("game"), motd="The first").start()
    yield game
    game.end()


@pytest.fixture
async def bridge(tmp_path: Path, game: GameServer) -> AsyncIterator[BridgePart]:
    """With ``first`` registered."""
    config = LabConfig.model_validate(
        {
            "state_file": tmp_path / "lab.json",
            "control": {"token": "x"},
            "proxmox": {"ca_dir": tmp_path / "ca"},
            "bridge": {"token": "bridge-token"},
            "dns": {"tsig_secret": "c2VjcmV0", "zone": ZONE},
        }
    )
    part = await start(config, World(), Faults())
    await register(part, "PUT", "first", {"address": game.address, "port": game.port})
    yield part
    await part.stop()


async def register(part: BridgePart, method: str, name: str, body: dict[str, Any] | None = None) -> None:
    headers = {"Authorization": "Bearer bridge-token", "X-ZLH-Lease-Token": "1"}
    async with httpx.AsyncClient(base_url=part.endpoints["url"], headers=headers) as http:
        (await http.request(method, f"/servers/{name}", json=body)).raise_for_status()


def port(part: BridgePart) -> int:
    return int(part.endpoints["players"].rpartition(":")[2])


async def joined(game: GameServer, username: str) -> None:
    await asyncio.to_thread(game.wait_for, rf"{username} joined the game")


async def test_a_player_joins_by_the_servers_name(bridge: BridgePart, game: GameServer) -> None:
    seen = await asyncio.to_thread(play, port(bridge), f"first.{ZONE}", username="guest")
    assert seen["ok"] and seen["chunks"] > 0 and seen["spawned_ms"] > 0
    await joined(game, "guest")


@pytest.mark.parametrize("name", [f"second.{ZONE}", "first.elsewhere.example", ZONE, f"x.first.{ZONE}", "127.0.0.1"])
async def test_an_unknown_name_reaches_nobody(bridge: BridgePart, game: GameServer, name: str) -> None:
    before = game.output
    seen = await asyncio.to_thread(play, port(bridge), name, username="stranger")
    assert not seen["ok"] and seen["stage"] == "login" and "stranger" not in game.output[len(before) :]


async def test_deregistered_while_somebody_plays_the_stream_goes_on_and_nobody_new_comes(bridge: BridgePart, game: GameServer) -> None:
    player = await asyncio.to_thread(Player, port(bridge), f"first.{ZONE}", seconds=10, username="stays")
    try:
        await joined(game, "stays")
        assert bridge.inspect()["players"] == 1
        await register(bridge, "DELETE", "first")
        game.say("say still here")
        assert not (await asyncio.to_thread(play, port(bridge), f"first.{ZONE}", username="late"))["ok"]
        seen = await asyncio.to_thread(player.result)
    finally:
        player.end()
    assert seen["ok"] and seen["stage"] == "done" and seen["packets"] > 0
    assert any("still here" in line for line in seen["chat"])
    async with asyncio.timeout(10):
        while bridge.inspect()["players"]:
            await asyncio.sleep(0.02)


async def test_a_restart_of_the_proxy_cuts_players_off(bridge: BridgePart, game: GameServer) -> None:
    player = await asyncio.to_thread(Player, port(bridge), f"first.{ZONE}", seconds=60, username="victim")
    try:
        await joined(game, "victim")
        await bridge.restart()
        seen = await asyncio.to_thread(player.result)
    finally:
        player.end()
    # A client that was just writing has that as its error.
    assert not seen["ok"] and seen["stage"] in ("spawn", "stay") and any(cut in seen["error"] for cut in ("ended", "EPIPE", "ECONNRESET")), seen


async def test_server_list_ping_goes_through_by_name(bridge: BridgePart) -> None:
    status = await _status(bridge, f"first.{ZONE}")
    assert (status.motd.to_plain(), status.version.protocol) == ("The first", 754)
    assert status.latency > 0
    with pytest.raises(OSError):
        await _status(bridge, f"second.{ZONE}")


async def test_of_two_servers_each_gets_its_own(bridge: BridgePart, tmp_path: Path) -> None:
    second = GameServer(tmp_path / "second", motd="The second")
    try:
        await asyncio.to_thread(second.start)
        await register(bridge, "PUT", "second", {"address": second.address, "port": second.port})
        answers = [await _status(bridge, f"{name}.{ZONE}") for name in ("first", "SECOND", "first")]
        assert [answer.motd.to_plain() for answer in answers] == ["The first", "The second", "The first"]
    finally:
        second.end()


async def test_a_backend_that_is_gone_ends_the_connection(bridge: BridgePart, game: GameServer) -> None:
    await register(bridge, "PUT", "gone", {"address": "127.0.0.1", "port": 1})
    seen = await asyncio.to_thread(play, port(bridge), f"gone.{ZONE}")
    assert not seen["ok"] and seen["stage"] == "login"


@pytest.fixture(autouse=True)
def names_lead_to_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As their DNS records would."""
    ask = socket.getaddrinfo

    def answer(host: Any, *arguments: Any, **options: Any) -> Any:
        return ask("127.0.0.1" if str(host).lower().endswith(f".{ZONE}") else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


async def _status(part: BridgePart, name: str) -> JavaStatusResponse:
    return await asyncio.to_thread(JavaServer(name, port(part), timeout=10).status)
