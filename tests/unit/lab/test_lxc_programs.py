"""Programs of the system: deadlines, descendants, what they are told and what they say."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.lab.lxc import processes
from flows.lab.lxc.programs import Programs, missing, tail
from flows.lab.substance import SubstanceError

pytestmark = pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux's setpriv is not here")
#: A shell with a child in a session of its own; both write their PIDs.
FAMILY = 'echo $$ > "$0/shell"; setsid sh -c \'echo $$ > "$0/child.new"; mv "$0/child.new" "$0/child"; sleep 1000\' "$0" & wait'


def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    process = processes.find(pid)
    return process is None or process.dead


def family(directory: Path) -> list[int]:
    return [int((directory / name).read_text()) for name in ("shell", "child")]


async def test_environment_is_clean_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "1")
    out = await Programs(tmp_path).do("env", timeout_s=10, more={"http_proxy": "http://p"})
    lines = out.decode().splitlines()
    assert f"ZLH_LAB_DIRECTORY={tmp_path}" in lines and "http_proxy=http://p" in lines
    assert not any("SECRET" in line for line in lines)


async def test_answers(tmp_path: Path) -> None:
    programs = Programs(tmp_path)
    ended = await programs.run("sh", "-c", "cat; echo bad >&2; exit 3", timeout_s=10, stdin=b"in")
    assert (ended.code, ended.out, ended.err) == (3, b"in", b"bad\n")
    assert (await programs.run("cat", timeout_s=10)).out == b"", "nothing is nobody's terminal"
    with pytest.raises(SubstanceError) as caught:
        await programs.do("sh", "-c", "echo one >&2; echo two >&2; exit 1", timeout_s=10, what="deed")
    assert str(caught.value) == "deed: one / two"
    with pytest.raises(SubstanceError, match="no-such-program"):
        await programs.do("no-such-program", timeout_s=10)
    assert (await programs.run("head", "-c1", timeout_s=10, stdin=b"x" * 1_000_000)).out == b"x", "who stops reading is no error"


@pytest.mark.parametrize("reaps", [False, True])
async def test_deadline_ends_descendants(tmp_path: Path, reaps: bool) -> None:
    with pytest.raises(SubstanceError, match=r"sh: did not end within 2 s"):
        await Programs(tmp_path).run("sh", "-c", FAMILY, str(tmp_path), timeout_s=2.0, reaps=reaps)
    for pid in family(tmp_path):
        assert gone(pid)


async def test_cancelling_ends_descendants(tmp_path: Path) -> None:
    task = asyncio.create_task(Programs(tmp_path).run("sh", "-c", FAMILY, str(tmp_path), timeout_s=60))
    while not (tmp_path / "child").exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in family(tmp_path):
        assert gone(pid)


async def test_cancelled_while_starting(tmp_path: Path) -> None:
    """Whenever that is: nothing is left that was started."""
    for turns in range(12):
        task = asyncio.create_task(Programs(tmp_path).run("sh", "-c", "sleep 1000 & sleep 1000 & wait", timeout_s=60))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not [process for process in processes.every() if str(tmp_path) in processes.read(process.pid, "environ")]


async def test_closed(tmp_path: Path) -> None:
    programs = Programs(tmp_path)
    programs.closed = True
    with pytest.raises(SubstanceError, match="closing"):
        await programs.run("touch", tmp_path / "made", timeout_s=10)
    assert not (tmp_path / "made").exists()


def test_a_program_dies_with_its_lab(tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys; from flows.lab.lxc.programs import Programs; p = pathlib.Path(sys.argv[1]);"
        "asyncio.run(Programs(p).run('sh', '-c', 'echo $$ > \"$0/new\"; mv \"$0/new\" \"$0/pid\"; exec sleep 1000', str(p), timeout_s=60))"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[3]) as lab:
        until((tmp_path / "pid").exists, 30)
        lab.kill()
    until(lambda: gone(int((tmp_path / "pid").read_text())))


def test_one_line() -> None:
    assert tail(b"\n a \n\n b\xff\n") == "a / b\ufffd"
    assert len(tail("x" * 10_000)) == 300
    assert missing(["sh", "no-such-program"]) == ["no-such-program"]


def test_processes() -> None:
    me = processes.find(os.getpid())
    assert me is not None and me.parent == os.getppid() and not me.dead
    assert {os.getpid(), os.getppid()} <= processes.kin(os.getpid())
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert child.pid in processes.descendants(os.getpid())
        processes.end_tree(child.pid)
        assert child.wait(10) == -signal.SIGKILL
    assert processes.find(child.pid) is None
    assert processes.read(child.pid, "cmdline") == ""
    processes.send(child.pid, signal.SIGKILL)  # harmless
