"""Real ansible-playbook under the real supervisor, on ``connection: local``: results, secrets, and that nothing outlives its caller."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.clients.playbooks import AnsibleRunner
from flows.clients.reach import Local
from flows.clients.supervisor import descendants, marked
from flows.domain.ports import Play
from flows.domain.server import ContainerType, Desired, Edge, Server, ServerState
from flows.errors import AmbiguousEffect, BadInput, Busy, DeadlineExceeded
from flows.settings import AnsibleSettings

PROJECT = Path(__file__).resolve().parents[2]
SECRET = "tOpSeCrEt-0123456789"

PLAYBOOKS = {
    "good.yml": """
- hosts: all
  gather_facts: false
  tasks:
    - name: Write the file
      ansible.builtin.copy:
        content: "{{ text }}"
        dest: "{{ out }}"
        mode: "0644"
    - name: Read back
      ansible.builtin.set_stats:
        data:
          host_keys: {ssh-ed25519: AAAA}
          here: "{{ inventory_hostname }}"
""",
    "failing.yml": """
- hosts: all
  gather_facts: false
  tasks:
    - name: Probe what may fail
      ansible.builtin.command: "false"
      ignore_errors: true
      changed_when: false
    - name: Break
      ansible.builtin.fail:
        msg: this is why
""",
    "leaky.yml": """
- hosts: all
  gather_facts: false
  tasks:
    - name: Shout
      ansible.builtin.command: "echo {{ token }}"
      changed_when: false
    - name: Look around
      ansible.builtin.shell: "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\\\0' '\\\\n' > {{ out }}"
      changed_when: false
    - name: Break
      ansible.builtin.command: "sh -c 'echo {{ token }} >&2; exit 3'"
      changed_when: false
""",
    "endless.yml": """
- hosts: all
  gather_facts: false
  tasks:
    - name: Shout
      ansible.builtin.command: "echo {{ token | default('nothing') }}"
      changed_when: false
    - name: Never end
      ansible.builtin.shell: "echo $$ > {{ out }}; setsid sleep 300 & wait"
""",
    # A task that leaves its session, loses its parent and ignores TERM: nothing but KILL ends it.
    "stubborn.yml": """
- hosts: all
  gather_facts: false
  tasks:
    - name: Never end
      ansible.builtin.shell: "(setsid sh -c 'trap \\"\\" TERM; while :; do sleep 1; done' &); echo $$ > {{ out }}; sleep 300"
""",
    "broken.yml": "- hosts: [\n",
}

CALLER = """
import asyncio, json, sys
from pathlib import Path
from flows.clients.playbooks import AnsibleRunner
from flows.clients.reach import Local
from flows.settings import AnsibleSettings
sys.path.insert(0, {tests!r})
from test_playbooks import play
settings = AnsibleSettings(project_dir=Path({project!r}), scratch_dir=Path({scratch!r}))
asyncio.run(AnsibleRunner(settings, reach=Local()).run(play("endless.yml", out={out!r}), lambda line: print(line, flush=True)))
"""

SERVER = Server(
    id="s1", customer_id="c1", name="alpha", ctype=ContainerType.GAME, flavor="fabric", version="1.21.4", memory_mb=2048, cores=2,
    disk_gb=10, node="pve1", storage="local", bridge="vmbr0", template_vmid=9000, vmid=10001, address="127.20.0.11",
    state=ServerState.CREATING, desired=Desired.RUNNING, desired_by="customer", edge=Edge.WITHDRAWN, token_version=1, created_at=0,
)  # fmt: skip


def play(name: str, **variables: Any) -> Play:
    return Play(name, SERVER, variables, timeout_s=50.0)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    (project / "playbooks").mkdir(parents=True)
    for name, text in PLAYBOOKS.items():
        (project / "playbooks" / name).write_text(text)
    return project


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def runner(project: Path, scratch: Path) -> AnsibleRunner:
    return AnsibleRunner(AnsibleSettings(project_dir=project, scratch_dir=scratch), reach=Local())


async def until(what: str, condition: Callable[[], Any], deadline_s: float) -> Any:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if result := condition():
            return result
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what}: not within {deadline_s} s")


def of(scratch: Path) -> list[int]:
    """Processes of every play whose directory was made here; their names stay known after the directory has gone."""
    return [pid for name in names(scratch) for pid in marked(name)]


def names(scratch: Path) -> set[str]:
    seen: set[str] = _SEEN.setdefault(str(scratch), set())
    seen |= set(os.listdir(scratch))
    return seen


_SEEN: dict[str, set[str]] = {}


async def test_a_play_twice(runner: AnsibleRunner, scratch: Path, tmp_path: Path) -> None:
    told: list[str] = []
    order = play("good.yml", out=str(tmp_path / "out"), text="hello")
    first = await runner.run(order, told.append)
    assert (first.ok, first.changed, first.unreachable, first.tail) == (True, True, False, "")
    assert first.facts == {"host_keys": {"ssh-ed25519": "AAAA"}, "here": "zlh-game-10001"}
    assert told == ["TASK Write the file", "TASK Read back"]
    assert (await runner.run(order)).changed is False
    assert os.listdir(scratch) == []


async def test_a_failure_is_a_result_that_says_why(runner: AnsibleRunner, scratch: Path) -> None:
    result = await runner.run(play("failing.yml"))
    assert not result.ok
    assert result.failed_task == "Break"
    assert "this is why" in result.tail
    assert os.listdir(scratch) == []


async def test_a_playbook_that_cannot_be_read_is_a_failure(runner: AnsibleRunner) -> None:
    result = await runner.run(play("broken.yml"))
    assert not result.ok
    assert "broken.yml" in result.tail


async def test_what_the_trust_role_hands_back_arrives(project: Path, runner: AnsibleRunner) -> None:
    """ansible-runner gives us the statistics of the whole play alone, none that a task keeps per host."""
    hand_over = yaml.safe_load((PROJECT / "roles" / "base" / "tasks" / "read_back.yml").read_text())[-1]
    assert "ansible.builtin.set_stats" in hand_over
    read = {"base_host_key": {"content": base64.b64encode(b"ssh-ed25519 AAAAC3 root@c1\n").decode()}}
    (project / "playbooks" / "hand_over.yml").write_text(
        yaml.safe_dump([{"hosts": "all", "gather_facts": False, "vars": read, "tasks": [hand_over]}])
    )
    assert (await runner.run(play("hand_over.yml"))).facts == {"host_keys": {"ssh-ed25519": "ssh-ed25519 AAAAC3 root@c1"}}


async def test_no_secret_is_left_anywhere(runner: AnsibleRunner, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLH_AGENT__MASTER_SECRET", SECRET)
    told: list[str] = []
    order = replace(play("leaky.yml", out=str(tmp_path / "processes")), secrets={"token": SECRET, "key": f"-----BEGIN\n{SECRET}2\n"})
    result = await runner.run(order, told.append)
    assert (result.ok, result.failed_task) == (False, "Break")
    assert SECRET not in result.tail
    assert SECRET not in "".join(told)
    assert os.listdir(scratch) == []
    seen = _lines(tmp_path / "processes")
    assert any("ansible-playbook" in line for line in seen)
    assert any(line.startswith("AUTOPILOT_PLAY=") for line in seen)
    assert not [line for line in seen if SECRET in line], "neither in an argument nor, as a setting of ours, in an environment"


async def test_during_a_play_two_files_hold_the_secret(runner: AnsibleRunner, scratch: Path, tmp_path: Path) -> None:
    task = asyncio.create_task(runner.run(replace(play("endless.yml", out=str(tmp_path / "pid")), secrets={"token": SECRET})))
    await until("the task", lambda: (tmp_path / "pid").exists(), 30)
    assert holders(scratch) == {"secrets.json": 0o600, "hidden.json": 0o600}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(scratch) == []


def holders(scratch: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in scratch.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()}


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()


async def test_a_time_out_ends_the_tree(runner: AnsibleRunner, scratch: Path, tmp_path: Path) -> None:
    before = set(descendants(os.getpid()))
    with pytest.raises(DeadlineExceeded):
        await runner.run(replace(play("endless.yml", out=str(tmp_path / "pid")), timeout_s=4.0))
    assert of(scratch) == []
    assert os.listdir(scratch) == []
    assert not set(descendants(os.getpid())) - before


async def test_cancelling_ends_the_tree(runner: AnsibleRunner, scratch: Path, tmp_path: Path) -> None:
    task = asyncio.create_task(runner.run(play("stubborn.yml", out=str(tmp_path / "pid"))))
    await until("the task", lambda: (tmp_path / "pid").exists(), 30)
    assert len(of(scratch)) >= 4  # supervisor, ansible-playbook, its worker, the shell
    task.cancel()
    begin = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 5 <= time.monotonic() - begin < 12, "TERM, five seconds, KILL"
    assert of(scratch) == []
    assert os.listdir(scratch) == []


async def test_a_caller_killed_with_9_takes_everything_along(project: Path, scratch: Path, tmp_path: Path) -> None:
    code = CALLER.format(tests=str(Path(__file__).parent), project=str(project), scratch=str(scratch), out=str(tmp_path / "pid"))
    caller = await asyncio.create_subprocess_exec(sys.executable, "-c", code, start_new_session=True)
    await until("the task", lambda: (tmp_path / "pid").exists(), 40)
    assert len(of(scratch)) >= 4
    os.killpg(caller.pid, signal.SIGKILL)  # the flow run's whole process group
    await caller.wait()
    await until("the end of the tree", lambda: not of(scratch), 12)
    assert os.listdir(scratch) == []


async def test_a_supervisor_killed_with_9_leaves_nothing(runner: AnsibleRunner, scratch: Path, tmp_path: Path) -> None:
    task = asyncio.create_task(runner.run(play("endless.yml", out=str(tmp_path / "pid"))))
    await until("the task", lambda: (tmp_path / "pid").exists(), 30)
    (supervisor,) = [pid for pid in of(scratch) if "flows.clients.supervisor" in _command(pid)]
    os.kill(supervisor, signal.SIGKILL)
    with pytest.raises(AmbiguousEffect):
        await task
    assert of(scratch) == []
    assert os.listdir(scratch) == []


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


class Locked(Local):
    """Holds the lock with a local command in place of an SSH session."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def lock(self, directory: Path, play: Play) -> list[str] | None:
        return ["flock", "-w", "0", str(self._file), "sh", "-c", "echo locked; exec cat"]


async def test_one_play_at_a_time_on_a_target(project: Path, scratch: Path, tmp_path: Path) -> None:
    runner = AnsibleRunner(AnsibleSettings(project_dir=project, scratch_dir=scratch), reach=Locked(tmp_path / "lock"))
    task = asyncio.create_task(runner.run(play("endless.yml", out=str(tmp_path / "pid"))))
    await until("the task", lambda: (tmp_path / "pid").exists(), 30)
    with pytest.raises(Busy):
        await runner.run(play("good.yml", out=str(tmp_path / "out"), text="x"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await runner.run(play("good.yml", out=str(tmp_path / "out"), text="x"))).ok


async def test_a_lost_lock_ends_the_play(project: Path, scratch: Path, tmp_path: Path) -> None:
    runner = AnsibleRunner(AnsibleSettings(project_dir=project, scratch_dir=scratch), reach=Locked(tmp_path / "lock"))
    task = asyncio.create_task(runner.run(play("endless.yml", out=str(tmp_path / "pid"))))
    await until("the task", lambda: (tmp_path / "pid").exists(), 30)
    for pid in of(scratch):
        if _command(pid).startswith("cat "):
            os.kill(pid, signal.SIGKILL)
    with pytest.raises(AmbiguousEffect, match="lock"):
        await task
    assert of(scratch) == []


async def test_no_ssh_session_is_unreachable(project: Path, scratch: Path) -> None:
    """A real ssh to an address where nobody listens."""
    runner = AnsibleRunner(AnsibleSettings(project_dir=project, scratch_dir=scratch))
    result = await runner.run(replace(play("failing.yml"), server=replace(SERVER, address="127.255.255.254")))
    assert (result.ok, result.unreachable) == (False, True)
    assert "127.255.255.254" in result.tail


async def test_an_unknown_playbook_starts_nothing(runner: AnsibleRunner, scratch: Path) -> None:
    with pytest.raises(BadInput):
        await runner.run(play("none.yml"))
    assert os.listdir(scratch) == []


def test_the_supervisor_ends_without_an_order() -> None:
    done = subprocess.run([sys.executable, "-m", "flows.clients.supervisor"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout) == (1, b"")
    assert json.dumps(done.stderr.decode()) == '""'
