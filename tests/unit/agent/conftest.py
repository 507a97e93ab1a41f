"""A unit that is a child process of the test, and agents over it that can be killed and followed by others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from zlh_agent.config import Game, NoGame, NotPrepared, Supervision
from zlh_agent.jobs import Job, Jobs
from zlh_agent.prepared import Prepared
from zlh_agent.supervisor import Supervisor
from zlh_agent.unit import CannotStart, Exit, Look

FAKE = Path(__file__).with_name("fake_game.py")
SETTINGS = Supervision(backoff_s=(0.05, 0.1, 0.15), settle_s=30.0, poll_s=0.02, ping_timeout_s=1.0, term_timeout_s=0.3, kill_timeout_s=2.0)


class ProcessUnit:
    """:class:`zlh_agent.unit.Unit` over a child process. It outlives the supervisors, as a systemd unit does."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory, self.port = directory, port
        self.process: subprocess.Popen[bytes] | None = None
        self.runs, self.since, self.loaded, self.going_down = 0, 0.0, True, False
        self.refuses = ""
        self.written: list[str] = []
        os.mkfifo(directory / "console")

    async def look(self) -> Look:
        run = f"run-{self.runs}" if self.runs else ""
        if self.process is None:
            return Look(self.loaded, False)
        code = self.process.poll()
        if code is None:
            return Look(self.loaded, True, self.process.pid, run, self.since)
        return Look(self.loaded, False, None, run, self.since, Exit(code=code) if code >= 0 else Exit(signal=-code))

    async def start(self) -> None:
        if self.refuses:
            raise CannotStart(self.refuses)
        self.spawn()

    def spawn(self) -> None:
        assert self.process is None or self.process.poll() is not None, "it runs twice"
        self.runs, self.since = self.runs + 1, time.monotonic()
        console = os.open(self.directory / "console", os.O_RDWR)
        with (self.directory / f"log-run-{self.runs}").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(FAKE), str(self.port), str(self.directory)], stdin=console, stdout=log, stderr=log
            )
        os.close(console)

    async def signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    async def ended(self, look: Look) -> None:
        while (now := await self.look()).active and now.run == look.run:
            await asyncio.sleep(0.005)

    def console(self, line: str) -> bool:
        self.written.append(line)
        with contextlib.suppress(OSError):
            descriptor = os.open(self.directory / "console", os.O_WRONLY | os.O_NONBLOCK)
            try:
                return os.write(descriptor, f"{line}\n".encode()) > 0
            finally:
                os.close(descriptor)
        return False

    def drain(self) -> None: ...

    async def tail(self, run: str, lines: int) -> tuple[str, ...]:
        return tuple((self.directory / f"log-{run}").read_text().splitlines()[-lines:])

    async def shutting_down(self) -> bool:
        return self.going_down

    @property
    def starts(self) -> int:
        path = self.directory / "starts"
        return len(path.read_text()) if path.exists() else 0

    def mode(self, words: str) -> None:
        (self.directory / "mode").write_text(words)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


class House:
    """One container: its unit, its state directory, and one agent after another."""

    def __init__(self, directory: Path, port: int) -> None:
        (directory / "game").mkdir()
        (directory / "state").mkdir()
        self.unit = ProcessUnit(directory / "game", port)
        self.state = directory / "state"
        self.game: Game | None = Game("zlh-game.service", directory / "game" / "console", "127.0.0.1", port, 10.0, 2.0, directory / "game")
        self.settings, self.boot, self.malformed = SETTINGS, "boot-1", False
        self._agents: list[Supervisor] = []

    def configure(self, **changes: object) -> None:
        assert self.game is not None
        self.game = replace(self.game, **changes)

    async def agent(self) -> Supervisor:
        """A new agent, attached. The one before must have been killed."""
        agent = self.successor()
        await asyncio.wait_for(agent.attach(), 5)
        return agent

    def successor(self) -> Supervisor:
        """One that has yet to attach."""
        agent = Supervisor(
            self.settings, Jobs(self.state / "jobs.json"), self.state / "game.json", Prepared(self._prepared, lambda _: self.unit), self.boot
        )
        self._agents.append(agent)
        return agent

    def _prepared(self) -> Game:
        if self.malformed:
            raise NotPrepared("game.toml is not TOML")
        if self.game is None:
            raise NoGame("game.toml: No such file or directory")
        return self.game

    async def kill(self, agent: Supervisor) -> None:
        """As by -9: nothing runs on, nothing is written any more."""
        await agent.close()

    async def reboot(self) -> None:
        """The container went down and came up: no process is left."""
        if self.unit.process is not None:
            self.unit.kill()
        self.unit.process = None
        self.boot += "+"

    async def close(self) -> None:
        for agent in self._agents:
            await agent.close()
        if self.unit.process is not None:
            self.unit.kill()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@pytest.fixture
async def house(tmp_path: Path, port: int) -> AsyncIterator[House]:
    house = House(tmp_path, port)
    yield house
    await house.close()


async def until(true: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Polls with a deadline."""
    ends = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < ends, "it did not come about in time"
        await asyncio.sleep(0.005)


async def over(job: Job) -> Job:
    await until(lambda: job.state != "running")
    return job


@pytest.fixture
def waits() -> Iterator[tuple[Callable[..., object], Callable[..., object]]]:
    yield until, over
