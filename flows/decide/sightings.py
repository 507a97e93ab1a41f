"""From one snapshot to what the next sweep must remember: observations of servers, sightings of stale entries, how sources answered.

The sweep stores what these functions return; the checks read the same values, so that a sweep decides on what it is about to store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from flows.decide import stale, vmids
from flows.domain.agent import AgentStatus, Observation, WorkloadState
from flows.domain.finding import Policy
from flows.domain.known import Known, Unknown
from flows.domain.server import ContainerType, Desired, Server, ServerState
from flows.domain.snapshot import Snapshot, SourceFact
from flows.domain.sources import HOLD_TAG

#: Reason of an observation whose agent answered and cannot be believed begins with this.
DISTRUSTED = "distrusted:"
#: Reason of an agent that was not asked, for want of time or by an error of our own, begins with this: no answer was missed.
NOT_ASKED = "not asked"
#: Reason of an observation whose container Proxmox says was stopped begins with this; then comes the user, who is remembered while it
#: stays stopped: task lists forget.
STOPPED_BY = "its container is stopped by "
_REASON_LENGTH = 255
_IDLE = "idle:"


def source_of(snapshot: Snapshot, name: str) -> Known[Any] | Unknown | None:
    """The answer of a source; None for the database, without which there is no snapshot. The agents are unknown as a whole where not one
    of them was asked; one by one, see :func:`observation_of`."""
    if name == "agents":
        return _agents(snapshot)
    answers: Mapping[str, Known[Any] | Unknown] = {
        "proxmox": snapshot.proxmox,
        "proxy": snapshot.proxy,
        "dns": snapshot.dns,
        "engine": snapshot.engine,
    }
    return answers.get(name)


def _agents(snapshot: Snapshot) -> Known[Any] | Unknown:
    reasons = [answer.reason for answer in snapshot.agents.values() if unasked(answer)]
    if not reasons or len(reasons) < len(snapshot.agents):
        return Known(snapshot.agents)
    return Unknown(min(reasons).removeprefix(NOT_ASKED).removeprefix(":").strip() or "no agent was asked")


def unasked(answer: Known[AgentStatus] | Unknown) -> TypeGuard[Unknown]:
    """Whether nobody asked: no sign of anything, neither of silence nor of life."""
    return isinstance(answer, Unknown) and answer.reason.startswith(NOT_ASKED)


#: Sources that answer as a whole, and all that may be unknown.
WHOLE_SOURCES = ("proxmox", "proxy", "dns", "engine")
ALL_SOURCES = (*WHOLE_SOURCES, "agents")


def distrusted(snapshot: Snapshot, server_id: str) -> str:
    """Why the agent's answer cannot be believed; empty where there is no such reason. Such an agent is reachable."""
    answer = snapshot.agents.get(server_id)
    if isinstance(answer, Unknown) and answer.reason.startswith(DISTRUSTED):
        return answer.reason.removeprefix(DISTRUSTED).strip() or "no reason given"
    return snapshot.distrusted.get(server_id, "").removeprefix(DISTRUSTED).strip()


def container_stopped(snapshot: Snapshot, server_id: str) -> bool:
    """Proof, by Proxmox, that nothing can be running there: stopped, or proven absent. An unknown Proxmox, a doubted VMID or a container that
    is merely not listed proves nothing."""
    server = snapshot.fleet.servers.get(server_id)
    if server is None or not isinstance(snapshot.proxmox, Known):
        return False
    view = snapshot.proxmox.value
    if server.vmid in view.absent:
        return True
    container = view.containers.get(server.vmid)
    return container is not None and container.status == "stopped" and not container.template and server.vmid not in view.duplicate_vmids


def container_running(snapshot: Snapshot, server_id: str) -> bool:
    """Whether Proxmox is known to say that the container runs."""
    server = snapshot.fleet.servers.get(server_id)
    if server is None or not isinstance(snapshot.proxmox, Known):
        return False
    container = snapshot.proxmox.value.containers.get(server.vmid)
    return container is not None and container.status == "running"


def stopped_by(snapshot: Snapshot, server_id: str) -> str:
    """Whose stop task ended the container, as Proxmox says it now or said it when it was first seen stopped; empty if nobody's is known."""
    server = snapshot.fleet.servers.get(server_id)
    if server is None or not isinstance(snapshot.proxmox, Known) or not container_stopped(snapshot, server_id):
        return ""
    said = snapshot.proxmox.value.last_stop_by.get(server.vmid)
    if said:
        return said
    before = snapshot.fleet.observations.get(server_id)
    return _stopper(before) if before is not None else ""


def _stopper(before: Observation) -> str:
    """Whose stop task an earlier sweep saw and stored."""
    known = before.state is WorkloadState.STOPPED and before.reason.startswith(STOPPED_BY)
    return before.reason.removeprefix(STOPPED_BY) if known else ""


def _surely_runs(snapshot: Snapshot, server_id: str) -> bool:
    """Proxmox says so, of a number that one guest alone has. Until then the sweep remembers who stopped it: a hiccup is no start."""
    server = snapshot.fleet.servers.get(server_id)
    doubted = server is not None and isinstance(snapshot.proxmox, Known) and server.vmid in snapshot.proxmox.value.duplicate_vmids
    return container_running(snapshot, server_id) and not doubted


def held_by_tag(snapshot: Snapshot, server_id: str) -> bool:
    """Whether a person at the node has tagged the container to be left as it is."""
    server = snapshot.fleet.servers.get(server_id)
    if server is None or not isinstance(snapshot.proxmox, Known):
        return False
    container = snapshot.proxmox.value.containers.get(server.vmid)
    return container is not None and HOLD_TAG in container.tags


def observation_of(snapshot: Snapshot, server_id: str) -> Observation | None:
    """What is known of a server now: the agent's answer; else a stopped container, which is proof of *not ready*; else no answer, which
    proves nothing, and makes nobody forget who stopped the container; for a server that was not asked, what was stored before
    (``domain.readiness`` judges its age)."""
    answer, before = snapshot.agents.get(server_id), snapshot.fleet.observations.get(server_id)
    if isinstance(answer, Known):
        return _answered(snapshot.now, server_id, answer.value, before)
    if container_stopped(snapshot, server_id):
        return Observation(
            server_id=server_id,
            at=snapshot.now,
            reachable=False,
            ready=False,
            state=WorkloadState.STOPPED,
            unready=(before.unready if before else 0) + 1,
            provisioning_complete=before.provisioning_complete if before else None,
            last_crash=before.last_crash if before else None,
            reason=_down(snapshot, server_id),
        )
    if answer is None or unasked(answer):
        return before
    kept = before if before is not None and _stopper(before) and not _surely_runs(snapshot, server_id) else None
    return Observation(
        server_id=server_id,
        at=snapshot.now,
        reachable=False,
        ready=None,
        state=kept.state if kept else None,
        misses=(before.misses if before else 0) + 1,
        unready=before.unready if before else 0,
        last_crash=before.last_crash if before else None,
        reason=kept.reason if kept else answer.reason[:_REASON_LENGTH],
    )


def container_gone(snapshot: Snapshot, server_id: str) -> bool:
    """Whether the container is proven absent."""
    server = snapshot.fleet.servers.get(server_id)
    return server is not None and isinstance(snapshot.proxmox, Known) and server.vmid in snapshot.proxmox.value.absent


def should_run(server: Server) -> bool:
    """By its record; its customer's standing is another matter."""
    return server.state is ServerState.ACTIVE and server.desired is Desired.RUNNING


def _watched(server: Server) -> bool:
    """What is suspended is counted too: stopped for its customer's standing, it should run from the moment in which that is good again."""
    return server.desired is Desired.RUNNING and server.state in (ServerState.ACTIVE, ServerState.SUSPENDED)


def idle(snapshot: Snapshot, server: Server) -> str:
    """What is stopped there, ``container`` or ``game``; empty where something runs, an agent is at work, or nobody knows. A container that is
    gone is no stopped one."""
    if container_gone(snapshot, server.id):
        return ""
    if container_stopped(snapshot, server.id):
        return "container"
    answer = snapshot.agents.get(server.id)
    still = isinstance(answer, Known) and answer.value.state is WorkloadState.STOPPED and answer.value.operation is None
    return "game" if still and server.ctype is ContainerType.GAME and container_running(snapshot, server.id) else ""


def idle_subject(server_id: str) -> str:
    """Under which its sightings are counted."""
    return f"{_IDLE}{server_id}"


def _undecided(snapshot: Snapshot, server_id: str) -> bool:
    """Whether nobody can say this time that something runs there."""
    server = snapshot.fleet.servers.get(server_id)
    if server is None or not _watched(server) or container_stopped(snapshot, server_id):
        return False
    unheard = server.ctype is ContainerType.GAME and not isinstance(snapshot.agents.get(server_id), Known)
    return unheard or not container_running(snapshot, server_id)


def _down(snapshot: Snapshot, server_id: str) -> str:
    """Why nothing runs there, in words that the next sweep understands."""
    if container_gone(snapshot, server_id):
        return "its container is gone"
    who = stopped_by(snapshot, server_id)
    return f"{STOPPED_BY}{who}"[:_REASON_LENGTH] if who else "its container is stopped"


def told_by(snapshot: Snapshot, server_id: str) -> frozenset[str]:
    """The sources, beside the database and its stored answers, from which :func:`observation_of` takes its word."""
    if isinstance(snapshot.agents.get(server_id), Known):
        return frozenset({"agents"})
    return frozenset({"proxmox"}) if container_stopped(snapshot, server_id) else frozenset()


def _answered(now: int, server_id: str, status: AgentStatus, before: Observation | None) -> Observation:
    return Observation(
        server_id=server_id,
        at=now,
        reachable=True,
        ready=status.ready,
        state=status.state,
        unready=0 if status.ready else (before.unready if before else 0) + 1,
        operation=status.operation,
        players=status.players,
        provisioning_complete=status.provisioning_complete,
        last_crash=status.last_crash,
    )


def observations(snapshot: Snapshot) -> tuple[Observation, ...]:
    """The next observations, in the order of server ids: of every server that was asked, and of those whose container is stopped."""
    ids = set(snapshot.agents) & set(snapshot.fleet.servers)
    ids.update(i for i in snapshot.fleet.servers if i not in snapshot.agents and container_stopped(snapshot, i))
    found = (observation_of(snapshot, i) for i in sorted(ids))
    return tuple(o for o in found if o is not None)


def sightings(snapshot: Snapshot, policy: Policy) -> Mapping[str, int]:
    """The next count of consecutive sweeps per stale entry that the database does not know, and per server that should run, were its
    customer in good standing, and in which nothing runs: *not ready* has a count of its own. An unknown source neither adds nor resets.
    Counts stop at ``confirm_sweeps``, so that a lasting entry changes no row."""
    before = snapshot.fleet.sightings
    after = {key: min(before.get(key, 0) + 1, policy.confirm_sweeps) for key in _seen(snapshot, policy)}
    if not isinstance(snapshot.proxy, Known):
        after.update({k: n for k, n in before.items() if k.startswith("proxy:")})
    if not isinstance(snapshot.dns, Known):
        after.update({k: n for k, n in before.items() if k.startswith("dns:")})
    if not isinstance(snapshot.proxmox, Known):
        after.update({k: n for k, n in before.items() if k.startswith(("container:", "vmid:"))})
    after.update({k: n for k, n in before.items() if k not in after and k.startswith(_IDLE) and _undecided(snapshot, k.removeprefix(_IDLE))})
    return dict(sorted(after.items()))


def _seen(snapshot: Snapshot, policy: Policy) -> Iterator[str]:
    for entry in (*stale.registrations(snapshot), *stale.names(snapshot, policy)):
        if entry.needs_sightings:
            yield entry.subject
    for container in vmids.orphans(snapshot):
        yield vmids.subject_of(container.vmid)
    for vmid in sorted(vmids.shared_by_guests(snapshot)):
        yield f"vmid:{vmid}"
    for server in snapshot.fleet.servers.values():
        if _watched(server) and idle(snapshot, server):
            yield idle_subject(server.id)


def sources(snapshot: Snapshot) -> tuple[SourceFact, ...]:
    """How each source answered, this sweep included. ``since`` is the time of its last change between known and unknown."""
    facts = [_fact(snapshot, "database", None)]
    for name in ALL_SOURCES:
        answer = source_of(snapshot, name)
        facts.append(_fact(snapshot, name, answer.reason if isinstance(answer, Unknown) else None))
    return tuple(facts)


def _fact(snapshot: Snapshot, name: str, reason: str | None) -> SourceFact:
    before = snapshot.fleet.sources.get(name)
    misses = 0 if reason is None else (before.misses if before else 0) + 1
    same = before is not None and (before.misses > 0) == (misses > 0)
    return SourceFact(name, misses, before.since if before is not None and same else snapshot.now, (reason or "")[:_REASON_LENGTH])
