"""Flows ``provision`` and ``deprovision``: a server comes into being, or ceases to."""

from __future__ import annotations

from prefect import flow

from flows.parameters import Attempt, Generation, OperationId
from flows.running import carry


@flow(name="provision", flow_run_name="provision-{operation_id}-{attempt}", persist_result=False)
async def provision(operation_id: OperationId, attempt: Attempt, generation: Generation) -> str:
    """Carries one attempt of a creation: clone, configure, trust, agent, workload, DNS, proxy, active; or undoes it."""
    return await carry(operation_id, attempt, generation)


@flow(name="deprovision", flow_run_name="deprovision-{operation_id}-{attempt}", persist_result=False)
async def deprovision(operation_id: OperationId, attempt: Attempt, generation: Generation) -> str:
    """Carries one attempt of a deletion: off the edge, stopped, destroyed, proven absent, released."""
    return await carry(operation_id, attempt, generation)
