"""A lab as a process: its directory's files and lock, its log, its beginning and its end. Used by :mod:`launch`. Standard library alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

#: Seconds that a lab gets to end by itself.
END_S = 10.0


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None: there is none, or it is a zombie. With the pid it names one process for good.
    One that is killed may be a zombie while its threads still die, and hold its files."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        dead = fields[0] == "Z" and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except OSError:
        return None
    return None if dead else int(fields[19])


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def write(path: Path, value: Mapping[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(value, file, indent=1)
    fresh.replace(path)


@contextlib.contextmanager
def starting(directory: Path) -> Iterator[int | None]:
    """The lock's descriptor, to be handed to the lab; None where a lab (or its launcher) holds it already."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def held(directory: Path) -> bool:
    with starting(directory) as lock:
        return lock is None


#: Children of this process, so that they can be reaped.
children: dict[int, subprocess.Popen[bytes]] = {}


def reap() -> None:
    """Forgets children that ended by themselves."""
    for pid, child in list(children.items()):
        if child.poll() is not None:
            children.pop(pid, None)


def spawn(directory: Path, lock: int) -> subprocess.Popen[bytes]:
    """A session of its own: a Ctrl-C for the launcher does not reach it. Secrets travel in the 0600 file, never in argv."""
    with (directory / "lab.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own argv, no shell
            [sys.executable, "-m", "flows.lab", "--config", str(directory / "config.json")],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
            env={k: v for k, v in os.environ.items() if not k.startswith("ZLH_")},
        )
    reap()
    children[process.pid] = process
    write(directory / "lab.pid", {"pid": process.pid, "started": start_ticks(process.pid)})
    return process


def pid_of(directory: Path) -> int | None:
    """The lab's process id, as its launcher or the lab itself wrote it, if that very process still lives."""
    for name in ("lab.pid", "state.json"):
        try:
            entry = read(directory / name)
        except (OSError, ValueError):
            continue
        pid, started = entry.get("pid"), entry.get("started")
        if isinstance(pid, int) and started is not None and start_ticks(pid) == started:
            return pid
    return None


def tail(directory: Path, lines: int = 12) -> str:
    try:
        return "\n".join((directory / "lab.log").read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


class Progress:
    """Tells what the lab writes into its log from now on: the messages, without their head."""

    def __init__(self, directory: Path, say: Callable[[str], None] | None) -> None:
        self._path, self._say = directory / "lab.log", say
        self._at = self._path.stat().st_size if self._path.exists() else 0

    def tell(self) -> None:
        if self._say is None:
            return
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._at += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                fields = line.split(" ", 4)  # date, time, level, logger, message
                if len(fields) == 5 and fields[2] == "INFO" and fields[3].startswith("flows.lab"):
                    self._say(fields[4])


def end(pid: int, end_s: float = END_S) -> None:
    """TERM, KILL after a grace; returns when that process is gone. Its start time guards against a pid that was handed on."""
    started = start_ticks(pid)
    for number, grace_s in ((signal.SIGTERM, end_s), (signal.SIGKILL, 5.0)):
        if started is None or start_ticks(pid) != started:
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + grace_s
        while start_ticks(pid) == started and time.monotonic() < deadline:
            time.sleep(0.02)
    child = children.pop(pid, None)
    if child is not None:
        child.wait()
