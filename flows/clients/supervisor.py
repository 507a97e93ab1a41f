"""Runs one playbook under ansible-runner and sees to it that nothing of it outlives its flow. ``python -m flows.clients.supervisor``.

Started by :mod:`flows.clients.playbooks` in a session of its own. Standard input is one line, the order, and then the flow's life line: at its
end of file (the flow cancelled, or died at any instruction) the whole process tree gets TERM, after five seconds KILL, and the private
directory is removed. Standard output is JSON lines: ``{"event": "task", "text"}``… and at last ``{"event": "end", "status", …}``.

Ansible's workers start sessions of their own, so no process group holds them: this process is a *subreaper*, orphans become its children
and are found in ``/proc``. It imports no settings and knows no secret but the file names and values to keep out of what it prints.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

#: Seconds between TERM and KILL.
GRACE_S = 5.0
#: Seconds after KILL until this process gives up waiting for the kernel.
REAP_S = 5.0
#: Names a play's processes in their environment, for whoever has to find them after this process was killed too.
MARKER = "AUTOPILOT_PLAY"
#: Lines and characters of output that a failure reports.
TAIL_LINES, TAIL_CHARS = 30, 4000

_PR_SET_CHILD_SUBREAPER = 36
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass
class Order:
    """What to run. Paths are absolute; ``directory`` is private and removed at the end; ``lock`` is a command that prints ``locked`` and
    holds a lock on the target until its standard input ends (None: no lock)."""

    directory: str
    project: str
    playbook: str
    inventory: str
    limit: str
    extra: list[str]
    timeout_s: float
    hidden_file: str
    lock: list[str] | None = None
    lock_wait_s: float = 30.0
    env: dict[str, str] = field(default_factory=dict)


class Outcome:
    """Gathers Ansible's events into the result. Used by the thread that runs Ansible, read when it is done."""

    def __init__(self, hidden: Iterable[str], say: Callable[[dict[str, Any]], None]) -> None:
        self._hidden = sorted(set(hidden), key=len, reverse=True)
        self._say = say
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._failure = ""
        self.hosts: dict[str, dict[str, int]] = {}
        self.facts: dict[str, Any] = {}
        self.failed_task = ""

    def event(self, event: dict[str, Any]) -> bool:
        """ansible-runner's event handler. False: no event is written to a file."""
        kind, data = str(event.get("event", "")), event.get("event_data") or {}
        output = _ANSI.sub("", str(event.get("stdout") or ""))
        self._lines.extend(line for line in output.splitlines() if line.strip())
        if kind == "playbook_on_task_start":
            self._say({"event": "task", "text": self.clean(f"TASK {data.get('task', '')}")})
        elif kind in ("runner_on_failed", "runner_on_unreachable", "runner_item_on_failed") and not data.get("ignore_errors"):
            if kind != "runner_item_on_failed":
                self.failed_task = self.clean(str(data.get("task", "")))
            self._failure = output or str((data.get("res") or {}).get("msg", ""))
            word = "UNREACHABLE" if kind == "runner_on_unreachable" else "FAILED"
            self._say({"event": "task", "text": self.clean(f"{word} {data.get('task', '')}")})
        elif kind == "playbook_on_stats":
            for count in ("ok", "changed", "failures", "dark", "skipped", "rescued", "ignored"):
                for host, number in (data.get(count) or {}).items():
                    self.hosts.setdefault(host, {})[count] = number
            self.facts = data.get("artifact_data") or {}
        return False

    def tail(self) -> str:
        text = self._failure or "\n".join(self._lines)
        return self.clean("\n".join(text.splitlines()[-TAIL_LINES:]))[-TAIL_CHARS:]

    def clean(self, text: str) -> str:
        """Without any secret's value, as it is or as JSON spells it."""
        for value in self._hidden:
            text = text.replace(value, "***")
        return text

    def result(self, status: str, why: str = "") -> dict[str, Any]:
        return {
            "event": "end",
            "status": status,
            "hosts": self.hosts,
            "facts": self.facts,
            "failed_task": self.failed_task,
            "tail": self.clean(why) if why else self.tail(),
        }


def become_subreaper() -> None:
    """Orphaned descendants become children of this process instead of init's."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(root: int) -> list[int]:
    """Every living process below ``root``, by ``/proc``; zombies are none."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, parent = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in ("Z", "X"):
                    children.setdefault(int(parent), []).append(int(entry))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def marked(marker: str) -> list[int]:
    """Every process whose environment names this play, whatever became of its parents."""
    wanted = f"{MARKER}={marker}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def end_processes(listed: Callable[[], list[int]], grace_s: float = GRACE_S) -> list[int]:
    """TERM to all, after ``grace_s`` KILL until none is left; returns what not even that ended. New ones found meanwhile share the fate."""
    end, signalled = time.monotonic() + grace_s, set[int]()
    while pids := listed():
        now = time.monotonic()
        if now >= end + REAP_S:
            return pids
        for pid in pids:
            if now >= end or pid not in signalled:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if now >= end else signal.SIGTERM)
                signalled.add(pid)
        reap()
        time.sleep(0.02)
    return []


def reap() -> None:
    """Collects ended children. Only once nobody waits for one any more."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


class Supervisor:
    """One play, from the order to the last line."""

    def __init__(self, order: Order, life_line: int, out: IO[str]) -> None:
        self._order, self._life_line, self._out = order, life_line, out
        self._said = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        self._lock: subprocess.Popen[bytes] | None = None
        self._outcome = Outcome(json.loads(Path(order.hidden_file).read_text()), self._say)
        self._ended: dict[str, Any] | None = None

    def run(self) -> int:
        """Never raises; whatever happens the tree is ended and the directory removed. 0: there was a result, 1: the flow was gone."""
        signal.signal(signal.SIGTERM, lambda *_: self._wake())
        try:
            verdict = self._supervise()
        except Exception as error:  # noqa: BLE001 - a process boundary: the flow is told, the tree is ended below
            verdict = self._outcome.result("error", f"{type(error).__name__}: {error}")
        left = end_processes(self._without_lock)
        left += end_processes(lambda: descendants(os.getpid()))  # the lock goes last: until then nobody else may begin
        reap()
        shutil.rmtree(self._order.directory, ignore_errors=True)
        if verdict is None:
            return 1
        if left:
            verdict = {**verdict, "tail": f"{verdict['tail']}\nprocesses that did not end: {left}"}
        self._say(verdict)
        return 0

    def _without_lock(self) -> list[int]:
        kept = set() if self._lock is None else {self._lock.pid, *descendants(self._lock.pid)}
        return [pid for pid in descendants(os.getpid()) if pid not in kept]

    def _supervise(self) -> dict[str, Any] | None:
        """The result, or None where the flow is gone."""
        deadline = time.monotonic() + self._order.timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._life_line, selectors.EVENT_READ, "gone")
            selector.register(self._wake_read, selectors.EVENT_READ, "woken")
            if self._order.lock:
                self._lock = subprocess.Popen(self._order.lock, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # noqa: S603 - made by the caller from settings
                assert self._lock.stdout is not None
                selector.register(self._lock.stdout, selectors.EVENT_READ, "lock")
                heard = self._wait(selector, min(deadline, time.monotonic() + self._order.lock_wait_s + 5.0))
                if heard in ("gone", "woken"):
                    return None
                if heard != "lock" or os.read(self._lock.stdout.fileno(), 64).strip() != b"locked":
                    return self._not_locked()
            threading.Thread(target=self._ansible, daemon=True).start()
            while True:
                heard = self._wait(selector, deadline)
                if heard == "gone" or (heard == "woken" and self._ended is None):
                    return None
                if heard == "woken":
                    return self._ended
                if heard == "lock":
                    return self._outcome.result("lock_lost", "the session that held the lock on the target ended during the play")
                if heard is None:
                    return self._outcome.result("timeout")

    def _wait(self, selector: selectors.BaseSelector, deadline: float) -> str | None:
        """What is heard first; None: the deadline passed. Bytes on the life line mean nothing, its end everything."""
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.data == "gone" and os.read(self._life_line, 4096):
                    continue
                return str(key.data)
        return None

    def _not_locked(self) -> dict[str, Any]:
        assert self._lock is not None
        assert self._lock.stderr is not None
        try:
            status = self._lock.wait(1.0)
        except subprocess.TimeoutExpired:
            return self._outcome.result("locked", "the lock on the target was not granted in time")
        why = self._lock.stderr.read(2000).decode(errors="replace").strip()
        if status == 255:  # ssh's own failures
            return self._outcome.result("unreachable", why or "no SSH session")
        return self._outcome.result("locked", why or "another play holds the lock on the target")

    def _ansible(self) -> None:
        """In a thread of its own, where ansible-runner leaves the signal handlers alone."""
        try:
            import ansible_runner

            order = self._order
            runner = ansible_runner.run(
                private_data_dir=order.directory,
                project_dir=order.project,
                playbook=order.playbook,
                inventory=order.inventory,
                limit=order.limit,
                cmdline=shlex.join(argument for file in order.extra for argument in ("-e", f"@{file}")),
                envvars=order.env,
                event_handler=self._outcome.event,
                quiet=True,
                rotate_artifacts=0,
            )
            self._ended = self._outcome.result("successful" if runner.rc == 0 else "failed")
        except Exception as error:  # noqa: BLE001 - a thread's boundary: an unheard error would look like a play without end
            self._ended = self._outcome.result("error", f"{type(error).__name__}: {error}")
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    def _say(self, line: dict[str, Any]) -> None:
        with self._said, contextlib.suppress(OSError, ValueError):  # nobody reads: the life line will say so
            self._out.write(json.dumps(line, default=str) + "\n")
            self._out.flush()


def main() -> int:
    """Takes its two pipes away from descriptors 0 and 1, so that nothing below inherits or writes into them."""
    life_line, out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(life_line, 1)
        if not byte:
            return 1
        line += byte
    become_subreaper()
    status = Supervisor(Order(**json.loads(line)), life_line, os.fdopen(out, "w")).run()
    os._exit(status)  # the thread that ran Ansible may still wait for a process that is gone


if __name__ == "__main__":
    sys.exit(main())
