"""``workload_stopped``: a server should run, and its container or its game is stopped, not by a person. Level 2: start.

*By a person*: ``desired`` is stopped (API, command line), the container was stopped by another user than our token, or it carries
``zlh-hold``. Confirmed by ``confirm_sweeps`` sweeps: a container that reboots is down for a moment.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide.sightings import container_gone, container_running, container_stopped, held_by_tag, observation_of, stopped_by
from flows.decide.wanted import suspended
from flows.domain.agent import WorkloadState
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.server import MAY_RUN, ContainerType, Desired, Server, ServerState
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database", "proxmox", "agents"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    for server in snapshot.fleet.servers.values():
        if not concerned(snapshot, server):
            continue
        what = _stopped(snapshot, server)
        if not what or by_a_person(snapshot, policy, server):
            continue
        seen = observation_of(snapshot, server.id)
        yield Finding(
            check=Check.WORKLOAD_STOPPED,
            subject=server.id,
            summary=f"{server.name}: should run, its {what} is stopped",
            level=2,
            action=Action.START_WORKLOAD,
            server_id=server.id,
            host=server.node,
            confirmed=seen is not None and seen.unready >= policy.confirm_sweeps,
            sources=SOURCES,
            evidence={"stopped": what},
            remedy=f"zlh start {server.name}",
        )


def concerned(snapshot: Snapshot, server: Server) -> bool:
    """Whether it should run at all: active, wanted running, its customer in good standing. Unknown standing is no permission."""
    standing = snapshot.fleet.billing.get(server.customer_id)
    running = server.state is ServerState.ACTIVE and server.desired is Desired.RUNNING
    return running and standing in MAY_RUN and not suspended(server, standing)


def by_a_person(snapshot: Snapshot, policy: Policy, server: Server) -> str:
    """Who stopped it, or asked for it to be left alone; empty if no person did."""
    if held_by_tag(snapshot, server.id):
        return "its container carries zlh-hold"
    who = stopped_by(snapshot, server.id)
    return f"stopped by {who}" if who and who != policy.our_user else ""


def _stopped(snapshot: Snapshot, server: Server) -> str:
    if container_gone(snapshot, server.id):
        return ""  # container_missing's
    if container_stopped(snapshot, server.id):
        return "container"
    answer = snapshot.agents.get(server.id)
    idle = isinstance(answer, Known) and answer.value.state is WorkloadState.STOPPED and answer.value.operation is None
    return "game" if idle and server.ctype is ContainerType.GAME and container_running(snapshot, server.id) else ""


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    server = snapshot.fleet.servers.get(subject)
    if server is None or not concerned(snapshot, server) or container_stopped(snapshot, subject):
        return ""
    if not container_running(snapshot, subject):
        return "Proxmox does not say whether its container runs"
    known = isinstance(snapshot.agents.get(subject), Known) or server.ctype is not ContainerType.GAME
    return "" if known else "the agent does not say whether the game runs"
