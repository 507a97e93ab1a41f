"""What holds for every snapshot: one verdict per finding, limits, known facts only, brakes, and the same plan in whatever order facts come."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flows.decide.breakers import BULK
from flows.decide.checks.registry import CHECKS
from flows.decide.plan import decide, find
from flows.decide.sightings import ALL_SOURCES, WHOLE_SOURCES, observations, sightings, source_of
from flows.domain.finding import OPERATION_ACTIONS, WITHDRAWALS, Check, EpisodeRow, Plan, Transition
from flows.domain.known import Unknown
from flows.domain.snapshot import Snapshot
from tests.support import snapshots

POLICY = snapshots.POLICY
HOSTS = st.sampled_from(["pve1", "pve2"])
SERVER = st.fixed_dictionaries(
    {
        "node": HOSTS,
        "state": st.sampled_from(["active", "active", "active", "creating", "suspended", "deleting", "failed"]),
        "ctype": st.sampled_from(["game", "game", "game", "dev"]),
        "edge": st.sampled_from(["open", "open", "open", "withdrawn"]),
        "customer_id": st.sampled_from(["acme", "acme", "broke", "nobody"]),
        "agent": st.sampled_from(["ready", "ready", "not_ready", "stopped", "silent", "silent", "distrusted", "unasked", {"operation": "job-1"}]),
        "container": st.sampled_from(["running", "running", "running", "stopped", "missing", "absent", "unknown"]),
        "registered": st.sampled_from([True, False, "10.9.9.9:25565"]),
        "published": st.sampled_from([True, False, "198.51.100.9"]),
        "activated_at": st.sampled_from(["-2h", "-90d"]),
    },
    optional={"misses": st.integers(1, 3), "unready": st.integers(1, 3)},
)
NAMES = [f"srv{i}" for i in range(12)]
OPERATION = st.fixed_dictionaries(
    {
        "server_id": st.sampled_from(NAMES),
        "kind": st.sampled_from(["provision", "delete", "restart"]),
        "state": st.sampled_from(["queued", "running", "cancelling", "compensating", "cleanup_required"]),
        "attempt_state": st.sampled_from(["unclaimed", "submitting", "submitted", "claimed", "ended"]),
        "claimed": st.integers(0, 4),
        "attempt_at": st.sampled_from(["-5s", "-1m", "-20m"]),
        "progress_at": st.sampled_from(["-5s", "-1m", "-20m"]),
        "deadline_at": st.sampled_from(["-1s", "+40m"]),
        "step": st.sampled_from([None, "create_container", "deploy_agent", "restart_workload"]),
        "step_deadline_at": st.sampled_from([None, "-1s", "+2m"]),
        "undo_failures": st.integers(0, 4),
    }
)
LEASE = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["operation", "operation", "repair", "backup", "patch", "maintenance"]),
        "operation_id": st.sampled_from(["op0", "op1", "op2", "op-gone"]),
        "expires_at": st.sampled_from(["-1s", "+50s"]),
    }
)
REPAIR = st.one_of(
    st.fixed_dictionaries(
        {
            "check": st.just("dns_record"),
            "action": st.just("publish_dns"),
            "subject": st.sampled_from(NAMES),
            "host": HOSTS,
            "outcome": st.sampled_from([None, "failed", "repaired", "unverified"]),
            "intent_at": st.sampled_from(["-1m", "-61m"]),
            "copies": st.integers(1, 3),
        }
    ),
    st.just({"check": "source_drift", "action": "rehydrate_proxy", "subject": "source:proxy", "counted": False, "host": None, "copies": 3}),
)
REVIEW = st.fixed_dictionaries(
    {
        "check": st.just("container_orphaned"),
        "subject": st.just("container:10900"),
        "evidence": st.sampled_from([{}, {"vmid": 10_900, "node": "pve1", "name": "late", "tags": ["zlh"]}]),
        "decision": st.sampled_from([None, "approved", "rejected", "carried_out"]),
        "expires_at": st.sampled_from(["-1s", "+1h"]),
    }
)
BRAKE = st.one_of(
    st.just({"scope": "all"}),
    st.builds(lambda host: {"scope": "host", "target": host}, HOSTS),
    st.builds(lambda name: {"scope": "server", "target": name}, st.sampled_from(NAMES)),
)
EPISODE_KEYS = st.sampled_from(
    [f"{c.value}/{n}" for c in CHECKS for n in NAMES[:3]]
    + ["host_down/host:pve1", "source_drift/source:proxy", "source_unknown/source:dns", "proxy_stale_registration/proxy:srv0"]
)
EPISODE = st.fixed_dictionaries(
    {
        "reason": st.sampled_from(["repairing", "unconfirmed", "level_disabled", "no_repair", "correlated"]),
        "escalated_at": st.sampled_from([None, "-1h", "-25h"]),
    }
)
DESCRIPTION = st.fixed_dictionaries(
    {
        "servers": st.dictionaries(st.sampled_from(NAMES), SERVER, max_size=12),
        "billing": st.just({"broke": "suspended"}),
        "operations": st.dictionaries(st.sampled_from(["op0", "op1", "op2"]), OPERATION, max_size=3),
        "leases": st.dictionaries(st.sampled_from(NAMES), LEASE, max_size=4),
        "repairs": st.lists(REPAIR, max_size=4),
        "brakes": st.lists(BRAKE, max_size=1),
        "episodes": st.dictionaries(EPISODE_KEYS, EPISODE, max_size=6),
        "unknown": st.dictionaries(st.sampled_from(ALL_SOURCES), st.just("no answer"), max_size=2),
        "registrations": st.dictionaries(st.sampled_from(["ghost1", "ghost2"]), st.just("10.9.9.9:25565"), max_size=2),
        "names": st.dictionaries(st.just("ghost.play.example"), st.just({"A": "203.0.113.7", "owner": "gone"}), max_size=1),
        "sightings": st.dictionaries(st.sampled_from(["proxy:ghost1", "dns:ghost.play.example", "container:10900"]), st.integers(1, 2), max_size=2),
        "nodes": st.dictionaries(HOSTS, st.booleans(), max_size=1),
        "level": st.integers(0, 3),
        "containers": st.dictionaries(st.just(10_900), st.just({"name": "late", "tags": ["zlh"]}), max_size=1),
        "reviews": st.lists(REVIEW, max_size=2),
    }
)
SNAPSHOTS = DESCRIPTION.map(snapshots.snapshot)
MANY = settings(max_examples=60, deadline=None)


@MANY
@given(SNAPSHOTS)
def test_every_finding_has_exactly_one_verdict(snapshot: Snapshot) -> None:
    plan = decide(snapshot, POLICY)
    found, _ = find(snapshot, POLICY)
    assert sorted(f.key for f in plan.findings) == sorted(f.key for f in found)
    assert max(Counter(f.key for f in plan.findings).values(), default=1) == 1


@MANY
@given(SNAPSHOTS)
def test_limits_are_never_exceeded(snapshot: Snapshot) -> None:
    plan = decide(snapshot, POLICY)
    under_way = [r for r in snapshot.fleet.repairs if r.outcome is None]
    assert len(plan.repairs) <= max(POLICY.concurrent_repairs - len(under_way), 0)
    hosts = Counter(r.finding.host for r in plan.repairs if r.finding.host) + Counter(r.host for r in under_way if r.host)
    for repair in plan.repairs:
        assert repair.finding.host is None or hosts[repair.finding.host] <= POLICY.concurrent_per_host
    subjects = [r.finding.server_id or r.finding.subject for r in plan.repairs]
    assert len(subjects) == len(set(subjects))


@MANY
@given(SNAPSHOTS)
def test_no_repair_from_an_unknown_source(snapshot: Snapshot) -> None:
    plan = decide(snapshot, POLICY)
    unknown = {name for name in ALL_SOURCES if isinstance(source_of(snapshot, name), Unknown)}
    for finding in plan.findings:
        assert not finding.sources & unknown, finding
        assert finding.check.value not in plan.skipped
    for repair in plan.repairs:
        if "agents" in repair.finding.sources and repair.finding.server_id in snapshot.agents:
            stopped = repair.finding.evidence.get("why") == "the server is not ready"
            silent = repair.finding.check is Check.AGENT_OFFLINE  # the confirmed silence is what it mends
            assert stopped or silent or not isinstance(snapshot.agents[repair.finding.server_id or ""], Unknown)


@MANY
@given(SNAPSHOTS, st.sampled_from(WHOLE_SOURCES))
def test_losing_a_source_closes_nothing_that_it_feeds(snapshot: Snapshot, source: str) -> None:
    dark = dataclasses.replace(snapshot, **{source: Unknown("no answer")})  # type: ignore[arg-type] # a field's name
    plan = decide(dark, POLICY)
    fed = {check.value for check, spec in CHECKS.items() if source in spec.sources}
    assert fed <= set(plan.skipped)
    assert not [c for c in plan.changes if c.key.partition("/")[0] in fed]


@MANY
@given(SNAPSHOTS)
def test_what_forbids_a_repair_is_respected(snapshot: Snapshot) -> None:
    now, fleet = snapshot.now, snapshot.fleet
    attempts = Counter(r.server_id for r in fleet.repairs if r.counted and r.intent_at > now - POLICY.breaker_window_ms)
    for repair in decide(snapshot, POLICY).repairs:
        finding = repair.finding
        assert finding.confirmed and 1 <= finding.level <= fleet.max_level
        assert not [b for b in fleet.brakes if b.scope == "all" or b.target in (finding.host, finding.server_id)]
        lease = fleet.leases.get(finding.server_id or finding.subject)
        if lease is not None and lease.blocks(now):
            assert lease.kind == "operation" and finding.operation_id is not None
        if repair.action not in WITHDRAWALS | OPERATION_ACTIONS | BULK:
            assert attempts[finding.server_id] < POLICY.breaker_attempts


@MANY
@given(SNAPSHOTS)
def test_the_order_of_facts_changes_nothing(snapshot: Snapshot) -> None:
    assert decide(_reversed(snapshot), POLICY) == decide(snapshot, POLICY)
    assert observations(_reversed(snapshot)) == observations(snapshot)
    assert list(sightings(_reversed(snapshot), POLICY).items()) == list(sightings(snapshot, POLICY).items())


@MANY
@given(SNAPSHOTS)
def test_a_second_sweep_of_the_same_facts_writes_nothing(snapshot: Snapshot) -> None:
    """Rows, alerts and audit lines are written on transitions, never each minute."""
    plan = decide(snapshot, POLICY)
    assert max(Counter(c.key for c in plan.changes).values(), default=1) == 1
    reviews = tuple(r for r in snapshot.fleet.reviews if r.id not in plan.withdrawn) + plan.asked
    fleet = dataclasses.replace(snapshot.fleet, episodes=_applied(snapshot, plan), reviews=reviews)
    again = decide(dataclasses.replace(snapshot, fleet=fleet), POLICY)
    if not any(s.reason == "rate_limited" for s in plan.suppressed):  # the queue of the limits moves on
        assert (again.changes, again.asked, again.withdrawn) == ((), (), {})


def _applied(snapshot: Snapshot, plan: Plan) -> dict[str, EpisodeRow]:
    """The open episodes after the plan's changes, as the store writes them."""
    rows = dict(snapshot.fleet.episodes)
    for change in plan.changes:
        if change.transition is Transition.CLOSED:
            del rows[change.key]
            continue
        finding = change.finding
        assert finding is not None
        row = rows.get(change.key) or EpisodeRow(change.key, finding.check, finding.subject, snapshot.now, snapshot.now, change.reason)
        recalled = change.transition is Transition.RECALLED
        rows[change.key] = dataclasses.replace(
            row,
            reason=change.reason,
            severity=finding.severity,
            remedy=finding.remedy,
            escalated_at=snapshot.now if change.announce and not recalled else row.escalated_at,
            recalled_at=snapshot.now if recalled else row.recalled_at,
        )
    return rows


def _reversed(value: Any) -> Any:
    """The same facts with every mapping and sequence of rows built the other way round."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return type(value)(**{k: _reversed(v) for k, v in fields.items()})
    if isinstance(value, dict):
        return {k: _reversed(v) for k, v in reversed(list(value.items()))}
    return tuple(reversed(value)) if isinstance(value, tuple) else value
