"""Repairs that become operations, because they last longer than a sweep may: start, restart, and restart of the agent.

The sweep looks at the condition once more, then writes intent and operation in one transaction; the run takes the lease and proves its own end,
which a later sweep writes as the repair's outcome (:func:`flows.state.repairs.settle`).
"""

from __future__ import annotations

from collections.abc import Mapping

from flows.act.deps import Deps
from flows.decide.checks import workload_error
from flows.domain.agent import WorkloadState
from flows.domain.finding import Action, Finding
from flows.domain.operation import OperationKind
from flows.domain.server import ContainerType, Server
from flows.domain.sources import HOLD_TAG
from flows.errors import BadAnswer, NotFound, Unauthorized, Unreachable
from flows.state import servers

KINDS: Mapping[Action, OperationKind] = {
    Action.RESTART_AGENT: OperationKind.RESTART_AGENT,
    Action.START_WORKLOAD: OperationKind.START,
    Action.RESTART_WORKLOAD: OperationKind.RESTART,
}
#: Longest time of the look, seconds.
LIMIT_S = 10.0


async def drifted(deps: Deps, finding: Finding) -> bool:
    """Whether it is still as it was found, asked of its source. Raises what the source raises where it does not say."""
    assert finding.server_id is not None and finding.action is not None
    async with deps.database.read() as tx:
        server = await servers.get(tx, finding.server_id)
    if server is None:
        return False
    if finding.action is Action.RESTART_AGENT:
        return await _silent(deps, server)
    if finding.action is Action.START_WORKLOAD:
        return await _stopped(deps, server)
    status = await deps.agents.status(server)
    return status.state is WorkloadState.ERROR and workload_error.crash(status.last_crash) == dict(finding.evidence)


async def _silent(deps: Deps, server: Server) -> bool:
    """An agent that refuses our credential is there; a restart would not mend it."""
    try:
        await deps.agents.status(server)
    except Unauthorized:
        return False
    except (Unreachable, BadAnswer):
        return await deps.proxmox.status(server.node, server.vmid) == "running"
    return False


async def _stopped(deps: Deps, server: Server) -> bool:
    """Stopped, and not by a person: who ended the container is asked anew, too."""
    view = await deps.proxmox.view()
    container = view.containers.get(server.vmid)
    if container is None:
        raise NotFound(f"container {server.vmid}", why="Proxmox does not list it")
    if HOLD_TAG in container.tags:
        return False
    if container.status == "stopped":
        ours = f"{deps.settings.proxmox.user}!{deps.settings.proxmox.token_name}"
        return view.last_stop_by.get(server.vmid, ours) == ours
    if container.status != "running" or server.ctype is not ContainerType.GAME:
        return False
    status = await deps.agents.status(server)
    return status.state is WorkloadState.STOPPED and status.operation is None
