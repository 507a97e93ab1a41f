"""Flow ``deploy-agent``: the pinned release of the agent on one server, with its present token and certificate."""

from __future__ import annotations

from prefect import flow

from flows.parameters import Attempt, Generation, OperationId
from flows.running import carry


@flow(name="deploy-agent", flow_run_name="deploy-agent-{operation_id}-{attempt}", persist_result=False)
async def deploy_agent(operation_id: OperationId, attempt: Attempt, generation: Generation) -> str:
    """Carries one attempt of a deployment. The workload goes on meanwhile."""
    return await carry(operation_id, attempt, generation)
