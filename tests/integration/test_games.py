"""The lab's game server as its host meets it: eula, ready line, console FIFO, saving, players, ends of every kind. Real processes, loopback."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mcstatus import JavaServer

from flows.lab import wares
from tests.support.bot import Player, play
from tests.support.games import GameServer

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]  # the first run builds the bundle

Make = Callable[..., GameServer]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[GameServer] = []

    def build(directory: str = "game", **options: object) -> GameServer:
        made.append(GameServer(tmp_path / directory, **options))  # type: ignore[arg-type] # properties of any kind
        return made[-1]

    yield build
    for game in made:
        game.end()


def ping(game: GameServer) -> object:
    return JavaServer(game.address, game.port, timeout=10).status()


def test_it_refuses_to_start_without_the_eula(make: Make) -> None:
    game = make(eula=None).start(wait=False)
    assert game.wait() == 0
    assert "You need to agree to the EULA in order to run the server. Go to eula.txt for more info." in game.output
    assert "eula=false" in (game.directory / "eula.txt").read_text() and not (game.directory / "world").exists()
    again = make(eula="eula=FALSE\n").start(wait=False)
    assert again.wait() == 0 and "Done (" not in again.output


def test_it_answers_pings_with_its_properties_and_stays_small(make: Make) -> None:
    game = make(motd="Räuber\\u0021 auf A=B", max_players=3).start()
    status = JavaServer(game.address, game.port, timeout=10).status()
    assert (status.version.name, status.version.protocol) == ("1.16.5", 754)
    assert (status.motd.to_plain(), status.players.max, status.players.online) == ("Räuber! auf A=B", 3, 0)
    assert game.process is not None
    peak = next(line for line in Path(f"/proc/{game.process.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 200 * 1024


def test_the_console_reads_a_fifo_that_opens_and_closes(make: Make) -> None:
    game = make().start()
    for number in range(1, 6):
        game.say("list")
        game.wait_for(r"There are 0 of a max of 7 players online: \n", number)
    game.say("/say hello")
    game.wait_for(r"\[Server thread/INFO\]: \[Server\] hello\n")
    game.say("frobnicate all")
    game.wait_for(r"Unknown or incomplete command, see below for error\n.*frobnicate all<--\[HERE\]")
    game.say("stop")
    assert game.wait() == 0
    assert "Stopping the server" in game.output and "All chunks are saved" in game.output


def test_a_console_that_is_closed_or_empty_ends_no_game(make: Make, tmp_path: Path) -> None:
    game = make()
    with (game.directory / "out.txt").open("wb") as out:
        game.process = subprocess.Popen(["node", str(wares.game().path)], cwd=game.directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    game.wait_for(r"Done \(")
    ping(game)
    assert game.process.poll() is None


def test_saving_answers_when_it_is_on_the_disk(make: Make) -> None:
    game = make().start()
    game.say("save-all flush")
    game.wait_for(r"Saved the game")
    regions = list((game.directory / "world" / "region").glob("*.mca"))
    assert len(regions) == 4 and all(region.stat().st_size > 8192 for region in regions)
    for line, answer in (
        ("save-off", "Automatic saving is now disabled"),
        ("save-off", "Saving is already turned off"),
        ("save-on", "Automatic saving is now enabled"),
        ("save-on", "Saving is already turned on"),
    ):
        game.say(line)
        game.wait_for(answer)


def test_a_full_disk_is_never_called_saved_and_heals(make: Make) -> None:
    """A limit on the size of its files stands for the disk: writes fail as they do there, and then work again."""
    game = make().start(wait=False)
    assert game.process is not None
    resource.prlimit(game.process.pid, resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))  # long before its first column is made
    game.wait_for(r"Failed to save the world: EFBIG")
    game.wait_for(r"Done \(")
    game.say("save-all")
    game.wait_for(r"Unable to save the game \(is there enough disk space\?\)")
    assert "Saved the game" not in game.output and play(game.port, "x")["ok"]
    resource.prlimit(game.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    game.say("save-all")
    game.wait_for(r"Saved the game")
    regions = list((game.directory / "world" / "region").glob("*.mca"))
    assert len(regions) == 4 and all(region.stat().st_size > 8192 for region in regions)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_gracefully_as_it_does_a_jvm(make: Make, number: int) -> None:
    game = make().start()
    assert game.process is not None
    game.process.send_signal(number)
    game.process.send_signal(number)
    assert game.wait() == 143
    assert game.output.count("Stopping the server") == 1 and "All chunks are saved" in game.output


def test_players_are_told_when_it_stops_and_their_world_is_there_again(make: Make) -> None:
    game = make().start()
    player = Player(game.port, "x", seconds=120)
    game.wait_for(r"bot joined the game")
    game.say("list")
    game.wait_for(r"There are 1 of a max of 7 players online: bot")
    game.say("stop")
    assert game.wait() == 0
    seen = player.result()
    assert not seen["ok"] and seen["stage"] == "stay" and "Server closed" in seen["error"]
    level = (game.directory / "world" / "level.dat").read_bytes()
    assert len(list((game.directory / "world" / "playerdata").glob("*.dat"))) == 1
    game.start()
    assert play(game.port, "x")["ok"]
    assert (game.directory / "world" / "level.dat").read_bytes() == level
    assert len(list((game.directory / "logs").glob("*.log.gz"))) == 1


def test_killed_at_any_moment_it_starts_again(make: Make) -> None:
    game = make().start()
    player = Player(game.port, "x", seconds=120)
    try:
        game.wait_for(r"bot joined the game")
        game.say("save-all")
        game.end()
    finally:
        player.end()
    game.start()
    assert play(game.port, "x")["ok"]


def test_a_taken_port_is_said_and_ends_it(make: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        game = make(port=taken.getsockname()[1]).start(wait=False)
        assert game.wait() == 1
    assert "**** FAILED TO BIND TO PORT!" in game.output and "Done (" not in game.output


@pytest.mark.parametrize(("name", "value"), [("server-port", "eighty"), ("level-name", "../elsewhere"), ("max-players", "-3"), ("gamemode", "god")])
def test_a_wrong_property_is_named(make: Make, name: str, value: str) -> None:
    game = make()
    with (game.directory / "server.properties").open("a") as out:
        out.write(f"{name}={value}\n")
    game.start(wait=False)
    assert game.wait() == 1 and f"server.properties: {name}={value} must be" in game.output


def test_what_a_player_says_begins_no_line_of_its_own(make: Make) -> None:
    game = make().start()
    player = Player(game.port, "x", seconds=0.5, say="hi\n[12:00:00] [Server thread/INFO]: Saved the game")
    player.result()
    game.wait_for(r"bot left the game")
    assert not re.search(r"^ *\[[^]]*\] \[Server thread/INFO\]: Saved", game.output, re.MULTILINE)


def test_garbage_on_its_port_harms_nobody(make: Make) -> None:
    game = make().start()
    for rubbish in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" * 64, b""):
        with socket.create_connection((game.address, game.port), timeout=5) as connection:
            connection.sendall(rubbish)
    ping(game)
    assert play(game.port, "x")["ok"]
