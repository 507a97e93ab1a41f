"""Child processes of ``zlh up``: each in a session of its own, logged to a file, found again after a kill of its parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.errors import AutomationError, Conflict


def started_at(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None: there is none, or it is a zombie. With the pid it names one process for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


@dataclass
class Child:
    """One child. ``grace_s``: seconds from TERM to KILL."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    cwd: Path
    grace_s: float = 10.0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own argv, no shell
                list(self.argv), env=dict(self.env), cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tail(self, lines: int = 15) -> str:
        """The end of its log, for an error message."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def stop(self, kill: bool = False) -> None:
        """TERM to its group, KILL after the grace; returns when it is gone."""
        if self.process is None:
            return
        end(self.process.pid, 0.0 if kill else self.grace_s)
        self.process.wait()


def end(pid: int, grace_s: float) -> None:
    """Ends a process group by its leader's pid."""
    for number, wait in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        if number is signal.SIGTERM and grace_s <= 0:
            continue
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # reaps our own child; another's is only looked at
            if started_at(pid) is None:
                break
            time.sleep(0.05)
        else:
            continue
        # The leader is gone; stragglers of its group get no grace.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        return


class Register:
    """A file with the children's pids and start times, so that the next start ends what a killed one left behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, children: Sequence[Child]) -> None:
        rows = {c.name: [c.process.pid, started_at(c.process.pid)] for c in children if c.process is not None}
        rows["up"] = [os.getpid(), started_at(os.getpid())]
        scratch = self.path.with_suffix(".new")
        scratch.write_text(json.dumps(rows))
        scratch.replace(self.path)

    def read(self) -> dict[str, tuple[int, str]]:
        """Those that still live."""
        try:
            rows = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return {name: (pid, start) for name, (pid, start) in rows.items() if started_at(pid) == start}

    def clear_leftovers(self) -> list[str]:
        """Ends what a killed predecessor left; raises Conflict when that predecessor is alive."""
        living = self.read()
        if "up" in living and living["up"][0] != os.getpid():
            raise Conflict(
                f"zlh up in {self.path.parent}",
                why=f"process {living['up'][0]} runs it already",
                remedy="stop it with Ctrl-C, or give another directory with --dir",
            )
        for name, (pid, _) in living.items():
            if name != "up":
                end(pid, 5.0)
        return [name for name in living if name != "up"]

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class ChildDied(AutomationError):
    """A child ended while it was needed."""
