"""The supervisor's parts without Ansible: finding and ending processes, gathering events, keeping secrets out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from flows.clients.supervisor import MARKER, Outcome, descendants, end_processes, marked

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
#: A child that leaves its parent's session, as Ansible's workers do, and a parent that dies.
DAEMON = "import os, sys, time\nif os.fork() == 0:\n    os.setsid()\n    print('up', flush=True)\n    time.sleep(300)\nos._exit(0)\n"


@pytest.fixture
def marker() -> Iterator[str]:
    marker = f"zlh-play-test-{uuid.uuid4().hex}"
    yield marker
    for pid in marked(marker):
        os.kill(pid, signal.SIGKILL)


def start(code: str, marker: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code], env={MARKER: marker}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def close(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.close()
    process.wait()


def test_finds_what_is_below_a_process(marker: str) -> None:
    process = start(STUBBORN, marker)
    assert process.pid in descendants(os.getpid())
    assert descendants(process.pid) == []
    process.kill()
    close(process)
    assert process.pid not in descendants(os.getpid())


def test_finds_a_daemon_by_its_environment_and_ends_it(marker: str) -> None:
    process = start(DAEMON, marker)
    process.wait()
    (daemon,) = marked(marker)
    assert daemon != process.pid
    assert end_processes(lambda: marked(marker), grace_s=5) == []
    assert marked(marker) == []
    close(process)


def test_kills_after_the_grace_what_ignores_term(marker: str) -> None:
    process = start(STUBBORN, marker)
    begin = time.monotonic()
    assert end_processes(lambda: marked(marker), grace_s=0.3) == []
    assert 0.3 <= time.monotonic() - begin < 4
    close(process)


def test_does_not_wait_where_term_suffices(marker: str) -> None:
    process = start(STUBBORN.replace("SIG_IGN", "SIG_DFL"), marker)
    begin = time.monotonic()
    assert end_processes(lambda: marked(marker), grace_s=10) == []
    assert time.monotonic() - begin < 5
    close(process)


def test_does_not_find_another_plays_processes(marker: str) -> None:
    process = start(STUBBORN, marker)
    assert marked(marker[:-1]) == []
    process.kill()
    close(process)


def gather(*events: dict[str, Any], hidden: tuple[str, ...] = ()) -> tuple[Outcome, list[dict[str, Any]]]:
    said: list[dict[str, Any]] = []
    outcome = Outcome(hidden, said.append)
    for event in events:
        assert outcome.event(event) is False, "no event is written to a file"
    return outcome, said


def test_gathers_counts_and_facts() -> None:
    stats = {"ok": {"h": 3}, "changed": {"h": 1}, "dark": {}, "artifact_data": {"host_keys": {"ssh-ed25519": "k"}}}
    outcome, said = gather(
        {"event": "playbook_on_task_start", "event_data": {"task": "install keys"}}, {"event": "playbook_on_stats", "event_data": stats}
    )
    result = outcome.result("successful")
    assert result["hosts"] == {"h": {"ok": 3, "changed": 1}}
    assert result["facts"] == {"host_keys": {"ssh-ed25519": "k"}}
    assert said == [{"event": "task", "text": "TASK install keys"}]


def test_a_failure_shows_its_own_output_and_no_secret() -> None:
    outcome, said = gather(
        {"event": "runner_on_ok", "event_data": {"task": "a"}, "stdout": "\x1b[0;32mok: [h]\x1b[0m"},
        {"event": "runner_on_failed", "event_data": {"task": "write geheim-1234"}, "stdout": "fatal: [h]: FAILED! => geheim-1234 is bad"},
        {"event": "runner_on_ok", "event_data": {"task": "c"}, "stdout": "later"},
        hidden=("geheim-1234",),
    )
    result = outcome.result("failed")
    assert result["failed_task"] == "write ***"
    assert result["tail"] == "fatal: [h]: FAILED! => *** is bad"
    assert "geheim" not in repr(said)
    assert "geheim" not in outcome.result("error", "could not read geheim-1234")["tail"]


def test_an_ignored_failure_is_none() -> None:
    outcome, _ = gather({"event": "runner_on_failed", "event_data": {"task": "probe", "ignore_errors": True}, "stdout": "fatal"})
    assert outcome.failed_task == ""


def test_without_a_failure_the_tail_is_the_last_lines() -> None:
    outcome, _ = gather(*({"event": "verbose", "stdout": f"line {n}"} for n in range(100)))
    assert outcome.result("failed")["tail"].splitlines()[-1] == "line 99"
    assert len(outcome.result("failed")["tail"].splitlines()) == 30
