"""``workload_stopped``: a server should run, and its container or its game is stopped, not by a person. Level 2: start.

*By a person*: ``desired`` is stopped (API, command line), the container was stopped by another user than our token, or it carries
``zlh-hold``. Confirmed by ``confirm_sweeps`` sweeps that saw it stopped: a container that reboots is down for a moment, and a game that
starts for minutes is merely not ready. While a backup of it runs Proxmox would refuse to start it, and a backup may have stopped it.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide import locks
from flows.decide.sightings import container_running, container_stopped, held_by_tag, idle, idle_subject, should_run, stopped_by
from flows.decide.wanted import suspended
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.server import MAY_RUN, ContainerType, Server
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database", "proxmox", "agents"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    for server in snapshot.fleet.servers.values():
        if not concerned(snapshot, server):
            continue
        what = idle(snapshot, server)
        if not what or by_a_person(snapshot, policy, server):
            continue
        lock = locks.held(snapshot, server)
        sighted = snapshot.fleet.sightings.get(idle_subject(server.id), 0) + 1
        yield Finding(
            check=Check.WORKLOAD_STOPPED,
            subject=server.id,
            summary=f"{server.name}: should run, its {what} is stopped",
            level=2,
            action=Action.START_WORKLOAD,
            server_id=server.id,
            host=server.node,
            confirmed=not lock and sighted >= policy.confirm_sweeps,
            sources=SOURCES if what == "game" else SOURCES - {"agents"},  # of a container Proxmox alone tells
            evidence={"stopped": what, **({"waits_for": lock} if lock else {})},
            remedy=f"zlh start {server.name}",
        )


def concerned(snapshot: Snapshot, server: Server) -> bool:
    """Whether it should run at all: active, wanted running, its customer in good standing. Unknown standing is no permission."""
    standing = snapshot.fleet.billing.get(server.customer_id)
    return should_run(server) and standing in MAY_RUN and not suspended(server, standing)


def by_a_person(snapshot: Snapshot, policy: Policy, server: Server) -> str:
    """Who stopped it, or asked for it to be left alone; empty if no person did."""
    if held_by_tag(snapshot, server.id):
        return "its container carries zlh-hold"
    who = stopped_by(snapshot, server.id)
    return f"stopped by {who}" if who and who != policy.our_user else ""


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    server = snapshot.fleet.servers.get(subject)
    if server is None or not concerned(snapshot, server) or container_stopped(snapshot, subject):
        return ""
    if not container_running(snapshot, subject):
        return "Proxmox does not say whether its container runs"
    known = isinstance(snapshot.agents.get(subject), Known) or server.ctype is not ContainerType.GAME
    return "" if known else "the agent does not say whether the game runs"
