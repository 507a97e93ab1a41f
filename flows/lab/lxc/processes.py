"""Processes as /proc shows them. A process that ends while it is looked at is simply not there."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """``started`` is in clock ticks since boot: with the PID it names one process for good."""

    pid: int
    parent: int
    state: str
    name: str
    started: int

    @property
    def dead(self) -> bool:
        return self.state in "ZX"


def find(pid: int) -> Process | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Process(pid, int(fields[1]), fields[0], head.partition("(")[2], int(fields[19]))


def every() -> Iterator[Process]:
    for entry in os.listdir(_PROC):
        if entry.isdigit() and (process := find(int(entry))) is not None and not process.dead:
            yield process


def read(pid: int, what: str) -> str:
    """A file of the process, such as ``cgroup``; empty where it is gone. Separators of ``cmdline`` and ``environ`` stay NUL."""
    try:
        return (_PROC / str(pid) / what).read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def kin(pid: int) -> set[int]:
    """``pid`` and its ancestors: what a clean-up must spare."""
    found = {pid}
    while (process := find(pid)) is not None and process.parent and process.parent not in found:
        pid = process.parent
        found.add(pid)
    return found


def descendants(pid: int) -> list[int]:
    children: defaultdict[int, list[int]] = defaultdict(list)
    for process in every():
        children[process.parent].append(process.pid)
    found: list[int] = []
    queue = [pid]
    while queue:
        found += (born := children[queue.pop()])
        queue += born
    return found


def send(pid: int, number: signal.Signals | int) -> None:
    """A signal; harmless where the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def end_tree(pid: int, *, root: bool = True) -> None:
    """Kills ``pid`` and all that descends from it, sessions of their own included. They are stopped first, so that none forks away.
    ``root`` false: ``pid`` itself lives on, to reap its children."""
    stopped: set[int] = set()
    for _ in range(10):
        fresh = {pid, *descendants(pid)} - stopped
        if not fresh:
            break
        for member in fresh:
            send(member, signal.SIGSTOP)
        stopped |= fresh
    for member in stopped - {pid}:
        send(member, signal.SIGKILL)
    send(pid, signal.SIGKILL if root else signal.SIGCONT)
