"""A whole running stack as a test's world: Prefect, worker, front door, dispatcher, watchdog and a fleet, in directories of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

from flows.cli.demo.stage import Stage
from flows.cli.stack import SHORT_TIMES, Stack


class ScratchStack(Stack):
    """With a scratch directory of its own, so that its plays' processes can be told from those of other tests. A sweep is a process with
    some seconds of work: on two busy cores fewer of them leave more to what is tested."""

    short_times: ClassVar[Mapping[str, str]] = {**SHORT_TIMES, "ZLH_TIMING__SWEEP_S": "20"}

    def _own_values(self) -> dict[str, str]:
        self._scratch().mkdir(mode=0o700, exist_ok=True)
        return super()._own_values() | {"ZLH_ANSIBLE__SCRATCH_DIR": str(self._scratch())}

    def _scratch(self) -> Path:
        return Path("/dev/shm") / f"zlh-{os.getpid()}-{self.dir.name}"  # noqa: S108 - tmpfs is the point

    def stop(self, *, drain_s: float) -> None:
        super().stop(drain_s=drain_s)
        shutil.rmtree(self._scratch(), ignore_errors=True)


S = TypeVar("S", bound=Stack)


@contextlib.contextmanager
def standing(stack: S) -> Iterator[S]:
    """Prepared and started; whatever came up of it is gone afterwards."""
    try:
        stack.prepare()
        stack.start()
        yield stack
    finally:
        stack.stop(drain_s=0.0)


@contextlib.asynccontextmanager
async def acting(stack: Stack, patience: float | None = None) -> AsyncIterator[Stage]:
    """A stage on it with the customer ``acme``. ``patience`` stretches every limit, for busy machines."""
    stage = Stage(stack, lambda _: None)
    try:
        stage.patience = stage.patience if patience is None else patience
        await stage.customer("acme")
        yield stage
    finally:
        await stage.close()


async def zlh(stack: Stack, *words: str) -> tuple[int, str]:
    """A command of the command line: its exit status, and what it printed, or if that is nothing its complaint."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("ZLH_")} | {"ZLH_ENV_FILE": str(stack.env_file)}
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-m", "flows.cli", *words], env=env, capture_output=True, text=True, timeout=600)
    print(words, done.returncode, done.stdout, done.stderr)
    return done.returncode, done.stdout or done.stderr
