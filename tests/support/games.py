"""A real game server on loopback: the lab's bundle as a process of ours, with a console FIFO as under systemd."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from flows.lab import wares
from flows.lab.serving import free_port

DEADLINE_S = 40.0


class GameServer:
    """``directory`` is its working directory, as /srv/game is in a container. Starts nothing by itself."""

    def __init__(self, directory: Path, *, address: str = "127.0.0.1", eula: str | None = "eula=true\n", **properties: object) -> None:
        self.directory, self.address, self.port = directory, address, int(str(properties.pop("port", 0))) or free_port()
        directory.mkdir(parents=True, exist_ok=True)
        settings = {"server-ip": address, "server-port": self.port, "motd": "A test", "max-players": 7, "online-mode": "false", **properties}
        (directory / "server.properties").write_text("".join(f"{key.replace('_', '-')}={value}\n" for key, value in settings.items()))
        if eula is not None:
            (directory / "eula.txt").write_text(eula)
        self.fifo = directory / "console"
        if not self.fifo.exists():
            os.mkfifo(self.fifo)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> GameServer:
        # The descriptor is opened as systemd opens a FIFO: for both, so that neither side waits for the other.
        console = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
        try:
            with (self.directory / "out.txt").open("wb") as out:
                self.process = subprocess.Popen(
                    ["node", str(wares.game().path), "nogui"], cwd=self.directory, stdin=console, stdout=out, stderr=out, start_new_session=True
                )
        finally:
            os.close(console)
        if wait:
            self.wait_for(r"Done \(\d+\.\d{3}s\)! For help, type \"help\"")
        return self

    @property
    def output(self) -> str:
        return (self.directory / "out.txt").read_text(errors="replace")

    def wait_for(self, pattern: str, count: int = 1) -> None:
        """Until a line of the log has it, ``count`` times."""
        assert self.process is not None
        end = time.monotonic() + DEADLINE_S
        while len(re.findall(pattern, self.output)) < count:
            assert self.process.poll() is None or len(re.findall(pattern, self.output)) >= count, (
                f"ended with {self.process.returncode}:\n{self.output}"
            )
            assert time.monotonic() < end, f"no {pattern!r} in:\n{self.output}"
            time.sleep(0.02)

    def say(self, line: str) -> None:
        """One line by a writer of its own, who opens the FIFO and closes it."""
        descriptor = os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(DEADLINE_S)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
