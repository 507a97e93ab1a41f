"""Flow ``operate``: start, stop and restart, of a server or its agent."""

from __future__ import annotations

from prefect import flow

from flows.parameters import Attempt, Generation, OperationId
from flows.running import carry


@flow(name="operate", flow_run_name="operate-{operation_id}-{attempt}", persist_result=False)
async def operate(operation_id: OperationId, attempt: Attempt, generation: Generation) -> str:
    """Carries one attempt of a start, stop or restart, or of a restart of the agent."""
    return await carry(operation_id, attempt, generation)
