"""What the unit's class makes of a machine that refuses: not known, and never "it ended". Real units are in the lab's tests."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from zlh_agent import systemd
from zlh_agent.systemd import SystemdUnit
from zlh_agent.tasks import Tasks
from zlh_agent.unit import Look, UnitError


class Stays(SystemdUnit):
    """Runs as this process."""

    async def look(self) -> Look:
        return Look(True, True, os.getpid(), "run-1")


@pytest.mark.parametrize("call", ["pidfd_open", "add_reader"])
async def test_an_end_that_cannot_be_watched_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuses(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os if call == "pidfd_open" else asyncio.get_running_loop(), call, refuses)
    unit, before = Stays("x.service", tmp_path / "console"), len(os.listdir("/proc/self/fd"))
    with pytest.raises(UnitError, match="Too many open files"):
        await unit.ended(await unit.look())
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_a_task_did_not_expect_is_in_the_journal(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise RuntimeError("who would have thought")

    tasks = Tasks()
    with caplog.at_level(logging.ERROR):
        tasks.spawn("watch", asyncio.sleep(60))
        await asyncio.sleep(0)
        tasks.spawn("watch", fails())  # in its place
        await asyncio.sleep(0)
        await tasks.close()
        await asyncio.sleep(0)
    assert caplog.text.count("watch ended unexpectedly") == 1 and "who would have thought" in caplog.text


@pytest.mark.parametrize("ends", [True, False])
async def test_output_without_end_does_not_fill_memory(ends: bool) -> None:
    script = f"head -c {systemd.OUTPUT * 4} /dev/zero | tr '\\0' x; echo last" + ("" if ends else "; exec cat /dev/zero")
    if ends:
        code, out, _ = await systemd.run("sh", "-c", script)
        assert code == 0 and len(out) == systemd.OUTPUT and out.endswith("last\n"), "the end is what is wanted"
    else:
        with pytest.raises(UnitError, match="no answer within"):
            await systemd.run("sh", "-c", script, timeout_s=1)
