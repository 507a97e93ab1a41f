"""What every flow file shares: dependencies for the run, and its lines in the run's log."""

from __future__ import annotations

from collections.abc import Callable

from prefect.logging import get_run_logger

from flows import bootstrap
from flows.act import executor


def say() -> Callable[[str], None]:
    """Writes to the flow run's log, which the engine's page shows."""
    return get_run_logger().info


async def carry(operation_id: str, attempt: int, generation: int) -> str:
    """Carries one attempt. Its end is in our database: the engine's state only mirrors it."""
    async with bootstrap.deps() as deps:
        return await executor.run(deps, operation_id, attempt, generation, say())
