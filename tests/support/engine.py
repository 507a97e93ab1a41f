"""An engine of bare processes: a submission starts an executor, once per key. What Prefect does for production, without its seconds."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.domain.sources import EngineRun


class ProcessEngine:
    """Implements :class:`flows.domain.ports.Engine`. ``kill_at`` maps an attempt number to the boundary at which its executor dies."""

    def __init__(self, env: Mapping[str, str], log: Path, kill_at: Mapping[int, str] | None = None) -> None:
        self._env, self._log, self.kill_at = dict(env), log, dict(kill_at or {})
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def submit(self, deployment: str, key: str, parameters: Mapping[str, object], queue: str) -> str:
        if key not in self.processes:
            attempt = int(str(parameters["attempt"]))
            argv = [str(parameters["operation_id"]), str(attempt), str(parameters["generation"])]
            if attempt in self.kill_at:
                argv.append(self.kill_at[attempt])
            with self._log.open("ab") as log:
                self.processes[key] = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tests.support.executor", *argv, env=self._env, stdout=log, stderr=log
                )
        return key

    async def runs(self, keys: Sequence[str]) -> Mapping[str, EngineRun]:
        return {
            key: EngineRun(key, key, "running" if process.returncode is None else "completed", process.returncode is not None)
            for key, process in self.processes.items()
            if key in keys
        }

    async def cancel(self, run_id: str) -> None:
        self._kill(run_id)

    async def give_up(self, run_id: str, reason: str) -> None:
        self._kill(run_id)

    async def close(self) -> None:
        for key, process in self.processes.items():
            self._kill(key)
            await process.wait()

    def _kill(self, key: str) -> None:
        process = self.processes.get(key)
        if process is not None and process.returncode is None:
            process.kill()
