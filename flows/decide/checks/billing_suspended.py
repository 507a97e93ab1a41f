"""``billing_suspended``: a suspended customer's workload runs. Repair: withdraw the edge, stop gracefully.

A game runs while its agent says so; a developer container runs while its agent answers at all. Proxmox shuts it down, and refuses while a
backup of it runs: that is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide import locks
from flows.decide.remedies import mend
from flows.decide.sightings import container_stopped
from flows.decide.wanted import suspended
from flows.domain.agent import AgentStatus, WorkloadState
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.server import ContainerType, Server, ServerState
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database", "agents"})
_STATES = frozenset({ServerState.ACTIVE, ServerState.SUSPENDED})
_RUNS = frozenset({WorkloadState.RUNNING, WorkloadState.STARTING})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    billing = snapshot.fleet.billing
    for server in snapshot.fleet.servers.values():
        if not _concerned(server, snapshot):
            continue
        answer = snapshot.agents.get(server.id)
        if isinstance(answer, Known) and _runs(server, answer.value):
            standing = billing.get(server.customer_id)
            lock = locks.held(snapshot, server) if server.ctype is ContainerType.DEV else ""
            seen = {"billing": standing.value if standing else None, "state": server.state.value, "workload": answer.value.state.value}
            yield Finding(
                check=Check.BILLING_SUSPENDED,
                subject=server.id,
                summary=f"{server.name}: runs although its customer is suspended",
                level=1,
                action=Action.SUSPEND_WORKLOAD,
                server_id=server.id,
                host=server.node,
                confirmed=not lock,
                sources=SOURCES,
                evidence=seen | ({"waits_for": lock} if lock else {}),
                remedy=mend(snapshot, f"zlh stop {server.name}"),
            )


def _concerned(server: Server, snapshot: Snapshot) -> bool:
    return server.state in _STATES and suspended(server, snapshot.fleet.billing.get(server.customer_id))


def _runs(server: Server, status: AgentStatus) -> bool:
    return server.ctype is ContainerType.DEV or status.state in _RUNS


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    server = snapshot.fleet.servers.get(subject)
    if server is None or not _concerned(server, snapshot) or container_stopped(snapshot, subject):
        return ""
    return "" if isinstance(snapshot.agents.get(subject), Known) else "the agent does not say whether the workload runs"
