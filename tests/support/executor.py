"""A bare executor process: carries one attempt without an engine, and dies by SIGKILL at a named boundary, or stands still (SIGSTOP) at the
one that EXECUTOR_STOP_AT names.

``python -m tests.support.executor OPERATION ATTEMPT GENERATION [BOUNDARY]``
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys

from flows import bootstrap
from flows.act import executor


async def main(operation_id: str, attempt: int, generation: int, kill_at: str | None) -> None:
    async def boundary(name: str) -> None:
        print(f"boundary {name}", flush=True)
        if name == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if name == os.environ.get("EXECUTOR_STOP_AT"):
            os.kill(os.getpid(), signal.SIGSTOP)

    async with bootstrap.deps() as deps:
        outcome = await executor.run(
            dataclasses.replace(deps, boundary=boundary), operation_id, attempt, generation, lambda line: print(line, flush=True)
        )
    print(f"outcome {outcome}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None))
