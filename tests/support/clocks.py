"""Clocks that are wrong: of one controller's process, or of the database's server. By libfaketime, which ``playbooks/lab.yml`` installs.

Their monotonic time stays what it is: a clock that is set does not change it either.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from tests.support import servers
from tests.support.loops import LoopController

LIBRARY = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


def faked(file: Path) -> Mapping[str, str]:
    """The environment of a process whose clock is off by what ``file`` says, which may be changed meanwhile."""
    assert LIBRARY, "libfaketime is not installed: playbooks/lab.yml installs it"
    return {
        "LD_PRELOAD": str(LIBRARY[0]),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def forget(pid: int) -> None:
    """Removes what libfaketime leaves of a killed process."""
    for kind in ("faketime_shm_", "sem.faketime_sem_"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"/dev/shm/{kind}{pid}")  # noqa: S108 - where it puts them


@contextlib.asynccontextmanager
async def clock_of(one: LoopController, shift: str, file: Path) -> AsyncIterator[Callable[[str], object]]:
    """``one`` with a clock of its own, off by ``shift``; yields what moves it."""
    move = file.write_text
    move(shift)
    env = dict(one.env)
    await one.kill()
    one.exits.clear()
    one.env.update(faked(file))
    try:
        await one.start()
        yield move
    finally:
        await one.kill()
        forget(one.pid)
        one.exits.clear()
        one.env = env
        await one.start()


class ClockedMariaDB(servers.MariaDB):
    """Its clock is off by what it was last told."""

    def move(self, shift: str) -> None:
        """``shift`` from the machine's clock, like ``+7h``; from now on, for connections that are open, too."""
        draft = self._clock.with_suffix(".draft")
        draft.write_text(shift)
        draft.chmod(0o644)
        draft.replace(self._clock)  # never half written

    @property
    def _clock(self) -> Path:
        return self.directory / "clock"

    def command(self) -> tuple[list[str], str]:
        """Preloaded by ``env``, the last program before the server: what changed its user before would have left semaphores of root's."""
        if not self._clock.exists():
            self.move("+0")
        argv, stdin = super().command()
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in faked(self._clock).items()), *argv], stdin

    def _end(self, by: signal.Signals) -> None:
        pid = self.pid if self.running else None
        super()._end(by)
        if pid is not None:
            forget(pid)
