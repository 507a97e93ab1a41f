"""``zlh explain SERVER``: what each source says of one server, each check's verdict, what automation would do, why not, and what comes next.

Pure: from one fresh snapshot and the same functions that the sweep decides with, so that it cannot tell another story.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flows.decide import holds
from flows.decide import plan as deciding
from flows.decide.breakers import Breakers
from flows.decide.checks.registry import CHECKS
from flows.decide.sightings import distrusted, observation_of, source_of, stopped_by, unasked
from flows.decide.wanted import SRV_PREFIX, fqdn
from flows.domain.finding import ESCALATES, OWN_ROUTE, Action, Check, EpisodeRow, Finding, Plan, Policy, Reason
from flows.domain.known import Known, Unknown
from flows.domain.lease import Lease
from flows.domain.operation import LIVE_STATES
from flows.domain.server import ContainerType, Server
from flows.domain.snapshot import Snapshot

#: What an action does, in words.
WORDS: Mapping[Action, str] = {
    Action.REVOKE_AND_RESUBMIT: "revoke the dead run's lease and submit the next attempt",
    Action.SUBMIT_ATTEMPT: "submit the attempt",
    Action.NEXT_ATTEMPT: "submit the next attempt",
    Action.FAIL_STUCK: "revoke the lease, end the run and give the operation up",
    Action.UNDO_AGAIN: "clean up again",
    Action.DEREGISTER_PROXY: "deregister from the proxy",
    Action.WITHDRAW_DNS: "withdraw the DNS name",
    Action.SUSPEND_WORKLOAD: "withdraw the edge and stop the workload gracefully",
    Action.PUBLISH_DNS: "publish the DNS record",
    Action.REGISTER_PROXY: "register with the proxy",
    Action.REHYDRATE_PROXY: "let the proxy pull its whole list again",
    Action.RESTART_AGENT: "restart zlh-agent",
    Action.START_WORKLOAD: "start it",
    Action.RESTART_WORKLOAD: "restart the workload, once approved",
    Action.RESTORE_BACKUP: "restore it from its last backup, once approved",
    Action.DESTROY_CONTAINER: "destroy the container, once approved",
}
#: Which line of the explanation a check's verdict stands on.
_LINE: Mapping[Check, str] = {
    Check.OPERATION_ORPHANED: "database",
    Check.OPERATION_UNSUBMITTED: "engine",
    Check.STUCK_PROVISIONING: "database",
    Check.CLEANUP_REQUIRED: "database",
    Check.LEASE_ABANDONED: "database",
    Check.BACKUP_MISSED: "database",
    Check.HOST_DOWN: "proxmox",
    Check.CONTAINER_MISSING: "proxmox",
    Check.DUPLICATE_VMID: "proxmox",
    Check.BILLING_SUSPENDED: "agent",
    Check.WORKLOAD_STOPPED: "agent",
    Check.WORKLOAD_ERROR: "agent",
    Check.AGENT_OFFLINE: "agent",
    Check.PROXY_REGISTRATION: "proxy",
    Check.PROXY_STALE_REGISTRATION: "proxy",
    Check.DNS_RECORD: "dns",
    Check.DNS_STALE_RECORD: "dns",
}
_GAMES_ONLY = frozenset({Check.PROXY_REGISTRATION, Check.DNS_RECORD})
LINES = ("database", "proxmox", "agent", "proxy", "dns", "engine")


@dataclass(frozen=True, slots=True)
class CheckVerdict:
    """``state`` is ``ok``, ``found`` or ``not judged``; ``detail`` is for people; ``reason`` ``repairing`` or why it is left alone."""

    check: Check
    state: str
    detail: str = ""
    reason: str = ""
    finding: Finding | None = None


@dataclass(frozen=True, slots=True)
class SourceLine:
    """What one source says of the server; ``known`` False: it gave no trustworthy answer."""

    source: str
    says: str
    known: bool
    verdicts: tuple[CheckVerdict, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """``would``: what the findings ask for. ``does_not``: why it is not done now. ``next``: what follows by itself or needs a person;
    ``commands`` mend it by hand. Times inside ``next_at`` (ms by the database's clock) are for the reader's zone."""

    server: Server
    lines: tuple[SourceLine, ...]
    would: tuple[str, ...]
    does_not: tuple[str, ...]
    next: tuple[str, ...]
    next_at: Mapping[str, int]
    commands: tuple[str, ...]


def explain(snapshot: Snapshot, policy: Policy, server_id: str) -> Explanation:
    """Raises KeyError for a server that the snapshot does not hold."""
    server = snapshot.fleet.servers[server_id]
    plan = deciding.decide(snapshot, policy)
    verdicts = _verdicts(snapshot, policy, server, plan)
    says = {
        "database": _database(snapshot, policy, server),
        "proxmox": _proxmox(snapshot, server),
        "agent": _agent(snapshot, server),
        "proxy": _proxy(snapshot, server),
        "dns": _dns(snapshot, policy, server),
        "engine": _engine(snapshot, server),
    }
    lines = tuple(
        SourceLine(name, says[name], _known(snapshot, name, server), tuple(v for v in verdicts if _LINE[v.check] == name)) for name in LINES
    )
    found = [v for v in verdicts if v.finding is not None]
    nexts = [_next(snapshot, v) for v in found]
    return Explanation(
        server=server,
        lines=lines,
        would=tuple(dict.fromkeys(_would(v.finding) for v in found if v.finding is not None)),
        does_not=tuple(dict.fromkeys(f"{v.check}: {v.reason}{f' ({v.detail})' if v.detail else ''}" for v in found if v.reason != "repairing")),
        next=tuple(dict.fromkeys(text for text, _ in nexts)),
        next_at={v.check.value: at for v, (_, at) in zip(found, nexts, strict=True) if at is not None},
        commands=tuple(dict.fromkeys(v.finding.remedy for v in found if v.finding is not None and v.finding.remedy)),
    )


def _verdicts(snapshot: Snapshot, policy: Policy, server: Server, plan: Plan) -> list[CheckVerdict]:
    done = {r.finding.key: CheckVerdict(r.finding.check, "found", "", "repairing", r.finding) for r in plan.repairs}
    done |= {s.finding.key: CheckVerdict(s.finding.check, "found", s.detail, s.reason.value, s.finding) for s in plan.suppressed}
    found: list[CheckVerdict] = []
    for check in _LINE:
        concerned = [v for v in done.values() if v.finding is not None and v.check is check and _concerns(v.finding, server)]
        if concerned:
            found.extend(concerned)
        elif check.value in plan.skipped:
            found.append(CheckVerdict(check, "not judged", plan.skipped[check.value]))
        elif check in _GAMES_ONLY and server.ctype is not ContainerType.GAME:
            continue
        else:
            why = CHECKS[check].unproven(snapshot, policy, _subject(check, server, policy))
            found.append(CheckVerdict(check, "not judged", why) if why else CheckVerdict(check, "ok"))
    return found


def _concerns(finding: Finding, server: Server) -> bool:
    if finding.check is Check.DUPLICATE_VMID:
        return finding.evidence.get("vmid") == server.vmid
    return finding.server_id == server.id or (finding.check is Check.HOST_DOWN and finding.host == server.node)


def _subject(check: Check, server: Server, policy: Policy) -> str:
    return {
        Check.PROXY_STALE_REGISTRATION: f"proxy:{server.name}",
        Check.DNS_STALE_RECORD: f"dns:{fqdn(server, policy)}",
        Check.HOST_DOWN: f"host:{server.node}",
        Check.DUPLICATE_VMID: f"vmid:{server.vmid}",
    }.get(check, server.id)


def _known(snapshot: Snapshot, line: str, server: Server) -> bool:
    if line == "agent":
        return isinstance(snapshot.agents.get(server.id), Known)
    return not isinstance(source_of(snapshot, line), Unknown)


def _database(snapshot: Snapshot, policy: Policy, server: Server) -> str:
    fleet, now = snapshot.fleet, snapshot.now
    billing = fleet.billing.get(server.customer_id)
    parts = [server.state.value, f"desired {server.desired}", f"edge {server.edge}", f"customer {billing.value if billing else 'unknown'}"]
    parts += [
        f"paused by {brake.actor} ({brake.scope})" + (f": {brake.reason}" if brake.reason else "")
        for brake in holds.in_force(fleet, now)
        if holds.applies(brake, fleet, server.id, server.node)
    ]
    parts.append(_lease(fleet.leases.get(server.id), now))
    breakers = Breakers(fleet, policy, now)
    word = "open" if breakers.is_open(server.id) else "closed"
    parts.append(f"breaker {word} ({breakers.attempts(server.id)} of {policy.breaker_attempts} attempts this hour)")
    live = next((o for o in sorted(fleet.operations.values(), key=lambda o: o.id) if o.server_id == server.id and o.state in LIVE_STATES), None)
    if live is not None:
        parts.append(f"{live.kind} {live.id} is {live.state}" + (f" at {live.step}" if live.step else ""))
    return ", ".join(parts)


def _lease(lease: Lease | None, now: int) -> str:
    if lease is None or lease.holder is None or lease.kind is None or not lease.blocks(now):
        return "no lease"
    return f"{lease.kind} lease of {lease.holder}" + (", expired" if lease.expired(now) else "")


def _proxmox(snapshot: Snapshot, server: Server) -> str:
    if isinstance(snapshot.proxmox, Unknown):
        return f"unknown: {snapshot.proxmox.reason}"
    view = snapshot.proxmox.value
    container = view.containers.get(server.vmid)
    if container is None:
        proven = server.vmid in view.absent
        return f"container {server.vmid} is gone, proven" if proven else f"does not list container {server.vmid}, which is no proof of absence"
    parts = [f"{container.status} on {container.node}"]
    if container.status == "running":
        parts.append(f"since {_duration(container.uptime_s)}")
    if container.tags:
        parts.append("tags " + " ".join(sorted(container.tags)))
    if container.lock:
        parts.append(f"locked ({container.lock})")
    if who := stopped_by(snapshot, server.id):
        parts.append(f"stopped by {who}")
    if view.nodes_online.get(server.node) is False:
        parts.append(f"node {server.node} is offline")
    return ", ".join(parts)


def _agent(snapshot: Snapshot, server: Server) -> str:
    answer = snapshot.agents.get(server.id)
    seen = observation_of(snapshot, server.id)
    if answer is None:
        return "not asked"
    if isinstance(answer, Known):
        status = answer.value
        ready = "ready" if status.ready else f"not ready in {seen.unready if seen else 1} sweeps"
        job = f", busy with {status.operation}" if status.operation else ""
        return f"{status.state}, {ready}, version {status.version}{job}"
    if distrusted(snapshot, server.id):
        return f"answers, but cannot be believed: {distrusted(snapshot, server.id)}"
    if unasked(answer):
        return answer.reason
    return f"no answer in {seen.misses if seen and seen.misses else 1} sweeps ({answer.reason})"


def _proxy(snapshot: Snapshot, server: Server) -> str:
    if isinstance(snapshot.proxy, Unknown):
        return f"unknown: {snapshot.proxy.reason}"
    registration = snapshot.proxy.value.registrations.get(server.name)
    return "not registered" if registration is None else f"registered {registration.address}:{registration.port}"


def _dns(snapshot: Snapshot, policy: Policy, server: Server) -> str:
    if isinstance(snapshot.dns, Unknown):
        return f"unknown: {snapshot.dns.reason}"
    name = fqdn(server, policy)
    records = (*snapshot.dns.value.records.get(name, ()), *snapshot.dns.value.records.get(SRV_PREFIX + name, ()))
    shown = [r.value if r.rtype != "SRV" else f"SRV {r.value}" for r in records if r.rtype != "TXT"]
    return f"{name} → {', '.join(shown)}" if shown else f"{name}: no record"


def _engine(snapshot: Snapshot, server: Server) -> str:
    if isinstance(snapshot.engine, Unknown):
        return f"unknown: {snapshot.engine.reason}"
    ids = {o.id for o in snapshot.fleet.operations.values() if o.server_id == server.id}
    runs = [r for key, r in sorted(snapshot.engine.value.runs.items()) if key.split(":")[1:2] and key.split(":")[1] in ids]
    return ", ".join(f"run {r.id} is {r.state}" for r in runs) or "no run"


def _would(finding: Finding) -> str:
    words = WORDS.get(finding.action, "") if finding.action is not None else ""
    return f"{words} (level {finding.level})" if words else "tell a person"


def _next(snapshot: Snapshot, verdict: CheckVerdict) -> tuple[str, int | None]:
    """What follows, and when where that is known."""
    finding = verdict.finding
    assert finding is not None
    episode: EpisodeRow | None = {e.key: e for e in snapshot.fleet.episodes.values()}.get(finding.key)
    if verdict.reason == "repairing":
        return "repaired in this sweep", None
    if verdict.reason == Reason.UNCONFIRMED:
        return "judged again in the next sweep", None
    if verdict.reason == Reason.RATE_LIMITED and finding.not_before is not None and finding.not_before > snapshot.now:
        return "tried again after the back-off", finding.not_before
    if verdict.reason in ESCALATES or finding.check in OWN_ROUTE:
        if episode is None or episode.escalated_at is None:
            return "a person is told", None
        if finding.check in OWN_ROUTE:
            return "a person was told", episode.escalated_at
        return "a person was told and is reminded daily", max(episode.escalated_at, episode.recalled_at or 0)
    return "looked at again in the next sweep", None


def _duration(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
