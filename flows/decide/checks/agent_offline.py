"""``agent_offline``: the container runs, its agent gave no answer in ``confirm_sweeps`` sweeps. Level 2: restart the agent service.

An agent that answers and cannot be believed (credential refused, another's identity) would not be mended by a restart: a person is told.
One that was not asked gave no sign of anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide.sightings import container_running, container_stopped, distrusted, observation_of, unasked
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Unknown
from flows.domain.server import Server, ServerState
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database", "proxmox", "agents"})
_STATES = frozenset({ServerState.ACTIVE, ServerState.SUSPENDED})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    for server_id, answer in snapshot.agents.items():
        if not isinstance(answer, Unknown) or unasked(answer):
            continue
        server = snapshot.fleet.servers.get(server_id)
        if server is None or server.state not in _STATES or not container_running(snapshot, server_id):
            continue
        seen = observation_of(snapshot, server_id)
        confirmed = seen is not None and seen.misses >= policy.confirm_sweeps
        why = distrusted(snapshot, server_id)
        yield _distrusted(server, why, confirmed) if why else _offline(server, answer.reason, confirmed)


def _offline(server: Server, reason: str, confirmed: bool) -> Finding:
    return Finding(
        check=Check.AGENT_OFFLINE,
        subject=server.id,
        summary=f"{server.name}: its container runs, its agent does not answer",
        level=2,
        action=Action.RESTART_AGENT,
        server_id=server.id,
        host=server.node,
        confirmed=confirmed,
        sources=SOURCES,
        evidence={"reason": reason},
        remedy=f"zlh restart-agent {server.name}",
    )


def _distrusted(server: Server, why: str, confirmed: bool) -> Finding:
    return Finding(
        check=Check.AGENT_OFFLINE,
        subject=server.id,
        summary=f"{server.name}: its agent answers, but cannot be believed",
        level=1,
        server_id=server.id,
        host=server.node,
        confirmed=confirmed,
        sources=SOURCES,
        evidence={"reason": why, "distrusted": True},
        remedy=f"pct exec {server.vmid} -- journalctl -u zlh-agent -n 50",  # by hand, on its node: which key or identity it holds
    )


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    server = snapshot.fleet.servers.get(subject)
    if server is None or server.state not in _STATES or container_stopped(snapshot, subject):
        return ""
    if subject not in snapshot.agents or unasked(snapshot.agents[subject]):
        return "its agent was not asked"
    silent = isinstance(snapshot.agents[subject], Unknown)
    return "Proxmox does not say whether its container runs" if silent and not container_running(snapshot, subject) else ""
