"""Controllers as processes of their own (:mod:`tests.support.loop_controller`), several on one world, told by what they say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: What a holder that cannot renew ends with (:func:`flows.act.deps._abandon`).
ABANDONED = 70


def stands_still(pid: int) -> bool:
    """Whether a process, which may be gone, is stopped."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


class LoopController:
    """One of them. ``events`` are its lines, each with ``at`` (monotonic). Started again by its test, as its unit would be."""

    def __init__(self, name: str, env: Mapping[str, str], log: Path) -> None:
        self.name, self.env, self.log = name, dict(env), log
        self.events: list[dict[str, Any]] = []
        self.exits: list[int] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()

    async def start(self) -> None:
        """Returns once it is about to sweep."""
        mark = len(self.events)
        with self.errors.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.support.loop_controller",
                self.name,
                env=self.env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=1 << 20,
            )
        self._reader = asyncio.create_task(self._read(self._process))
        await self.heard(lambda e: "ready" in e, "ready", mark, 60)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            with self.log.open("ab") as log:
                log.write(line)
            if line.startswith(b"{"):  # the rest is its log
                self.events.append({"at": time.monotonic(), **json.loads(line)})
            self._heard.set()
        ended = await process.wait()
        self.exits.append(ended)
        self.events.append({"at": time.monotonic(), "exit": self.exits[-1]})
        self._heard.set()

    @property
    def errors(self) -> Path:
        """What it wrote to its standard error, all its lives long."""
        return self.log.with_suffix(".err")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def order(self, **what: Any) -> None:
        """Obeyed when it returns."""
        mark = len(self.events)
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        await self._process.stdin.drain()
        await self.heard(lambda e: e.get("obeyed") == what, f"obeyed {what}", mark)

    async def heard(self, wanted: Callable[[dict[str, Any]], bool], what: str, since: int = 0, limit_s: float = 45.0) -> dict[str, Any]:
        """The first event since the ``since``-th that is wanted, waited for."""
        end, seen = time.monotonic() + limit_s, since
        while True:
            self._heard.clear()
            for event in self.events[seen:]:
                seen += 1
                if wanted(event):
                    return event
            try:
                async with asyncio.timeout(max(0.0, end - time.monotonic())):
                    await self._heard.wait()
            except TimeoutError:
                raise AssertionError(f"{self.name}: {what}: not heard in {limit_s} s; its last words:\n{self.said()}") from None

    def said(self) -> str:
        """Its last words, and what it wrote to its log."""
        errors = self.errors.read_text(errors="replace")[-4000:] if self.errors.exists() else ""
        return "\n".join([*map(str, self.events[-30:]), errors])

    async def swept(self, count: int = 1, limit_s: float = 45.0) -> None:
        """Waits for so many further sweeps that did their work."""
        for _ in range(count):
            await self.heard(lambda e: e.get("sweep") in ("clean", "findings", "paused"), "a sweep", len(self.events), limit_s)

    async def hold(self) -> None:
        """No sweep runs, and none begins until ``order(hold=False)``."""
        await self.order(hold=True)
        turns = [e for e in self.events if e.keys() & {"begins", "sweep", "failed", "ready"}]
        if "begins" in turns[-1]:
            await self.over(self.events.index(turns[-1]))

    async def over(self, since: int, limit_s: float = 45.0) -> dict[str, Any]:
        """The end of a sweep, or of the process."""
        return await self.heard(lambda e: bool(e.keys() & {"sweep", "failed", "exit"}), "the end of its sweep", since, limit_s)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def proceed(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @property
    def stands_still(self) -> bool:
        return stands_still(self.pid)

    async def kill(self) -> None:
        """By SIGKILL, stopped or not."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        if self._reader is not None:
            await self._reader

    def since(self, at: float) -> list[dict[str, Any]]:
        """What it said since a monotonic time."""
        return [event for event in self.events if event["at"] >= at]
