"""``proxy_stale_registration``: registered, but confirmed not ready, suspended, closed to players, or unknown to the database. Repair: deregister.

Not ready means the agent's own fresh word, or a stopped container, in ``confirm_sweeps`` sweeps; no answer is no proof. Unknown to the
database needs as many sightings. What a row of the database says (suspended, edge withdrawn) needs none.
"""

from __future__ import annotations

from collections.abc import Iterable

from flows.decide import stale
from flows.decide.remedies import mend
from flows.decide.sightings import observation_of, told_by
from flows.decide.wanted import publishable
from flows.domain import readiness
from flows.domain.agent import AgentStatus
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.server import Server, ServerState
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database", "proxy"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    if not isinstance(snapshot.proxy, Known):
        return
    said: set[str] = set()
    for entry in stale.registrations(snapshot):
        if entry.server is not None and entry.needs_sightings and _known_ready_or_not(snapshot, entry.server.id):
            continue  # a wrong address of a ready server is registered again; of an unready one, see below
        said.add(entry.name)
        sighted = snapshot.fleet.sightings.get(entry.subject, 0) + 1
        yield _finding(snapshot, entry.name, entry.why, entry.server, not entry.needs_sightings or sighted >= policy.confirm_sweeps)
    names = stale.holders_of_names(snapshot.fleet)
    for name in snapshot.proxy.value.registrations:
        server = names.get(name)
        if server is None or name in said or server.state is not ServerState.ACTIVE:
            continue
        answer = snapshot.agents.get(server.id)
        if isinstance(answer, Known) and _says_ready(answer.value):
            continue  # the usual case, without building an observation
        seen = observation_of(snapshot, server.id)
        if seen is not None and readiness.may_withdraw(seen, snapshot.now):
            yield _finding(snapshot, name, "the server is not ready", server, seen.unready >= policy.confirm_sweeps, agents=True)


def _says_ready(status: AgentStatus) -> bool:
    return status.ready


def _known_ready_or_not(snapshot: Snapshot, server_id: str) -> bool:
    return readiness.fresh(observation_of(snapshot, server_id), snapshot.now)


def _finding(snapshot: Snapshot, name: str, why: str, server: Server | None, confirmed: bool, *, agents: bool = False) -> Finding:
    return Finding(
        check=Check.PROXY_STALE_REGISTRATION,
        subject=f"proxy:{name}",
        summary=f"{name}: registered with the proxy, but {why}",
        level=1,
        action=Action.DEREGISTER_PROXY,
        server_id=server.id if server else None,
        host=server.node if server else None,
        confirmed=confirmed,
        sources=SOURCES | told_by(snapshot, server.id) if agents and server else SOURCES,
        evidence={"name": name, "why": why},
        remedy=mend(snapshot, _remedy(server, agents=agents)),
    )


def _remedy(server: Server | None, *, agents: bool) -> str:
    if server is None:
        return "zlh findings --check proxy_stale_registration"
    return f"zlh restart {server.name}" if agents else f"zlh explain {server.name}"


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    name = subject.removeprefix("proxy:")
    if not isinstance(snapshot.proxy, Known) or name not in snapshot.proxy.value.registrations:
        return ""
    server = stale.holders_of_names(snapshot.fleet).get(name)
    if server is None or not publishable(server, snapshot.fleet.billing.get(server.customer_id)):
        return ""
    return "" if readiness.fresh(observation_of(snapshot, server.id), snapshot.now) else "readiness unknown"
