"""Agents: ``GET /status`` of every container that should run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from flows.decide.sightings import NOT_ASKED
from flows.domain.agent import AgentStatus
from flows.domain.known import Known, Unknown
from flows.domain.operation import Operation, StepName
from flows.domain.ports import AgentReader
from flows.domain.server import Server, ServerState
from flows.errors import AutomationError

#: Begins the reason of an agent that refused our credential or answered as somebody else.
DISTRUSTED = "distrusted:"
_PROBED = frozenset({ServerState.ACTIVE, ServerState.SUSPENDED})


#: Steps under which an agent may be at work although its server is still being made, or unmade.
_AGENT_AT_WORK = frozenset(
    {
        StepName.START_WORKLOAD,
        StepName.STOP_WORKLOAD,
        StepName.RESTART_WORKLOAD,
        StepName.PUBLISH_DNS,
        StepName.REGISTER_PROXY,
        StepName.ACTIVATE,
        StepName.FINISH,
    }
)


def worth_probing(servers: Iterable[Server], live: Iterable[Operation] = ()) -> list[Server]:
    """Servers whose container should run; of those being made or unmade the ones whose operation has reached its agent."""
    reached = {o.server_id for o in live if o.step in _AGENT_AT_WORK}
    return [s for s in servers if s.state in _PROBED or s.id in reached]


async def probe(agents: AgentReader, servers: Sequence[Server], limit_s: float) -> Mapping[str, Known[AgentStatus] | Unknown]:
    """One answer per server. Where nobody could be asked, for a fault of our own (a missing secret, an unreadable CA) or because the sweep ran
    out of time, no agent missed an answer: the source is unknown, not its servers."""
    try:
        async with asyncio.timeout(limit_s):
            return await agents.probe(servers)
    except TimeoutError:
        return _nobody_asked(servers, f"no full answer in {limit_s:g} s")
    except AutomationError as error:
        return _nobody_asked(servers, str(error))


def _nobody_asked(servers: Sequence[Server], why: str) -> dict[str, Known[AgentStatus] | Unknown]:
    return {s.id: Unknown(f"{NOT_ASKED}: {why}") for s in servers}


def distrusted(answers: Mapping[str, Known[AgentStatus] | Unknown]) -> dict[str, str]:
    """Server id → reason, of agents that are reachable and not to be believed."""
    return {k: v.reason for k, v in answers.items() if isinstance(v, Unknown) and v.reason.startswith(DISTRUSTED)}
