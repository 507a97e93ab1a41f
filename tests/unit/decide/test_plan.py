"""The plan as a whole: order, announcements, every check wired."""

from __future__ import annotations

import json

from flows.decide import announce
from flows.decide.checks.registry import CHECKS
from flows.decide.plan import decide
from flows.domain.event import EventKind
from flows.domain.finding import Action, Check
from tests.support import snapshots


def test_every_check_is_wired() -> None:
    assert set(CHECKS) == set(Check)


def test_order_of_a_plan() -> None:
    """release, deregister, unpublish, stop, start, publish, register."""
    plan = decide(
        snapshots.snapshot(
            servers={
                "reg": {"node": "h1", "registered": False},
                "pub": {"node": "h1", "published": False},
                "dereg": {"node": "h2", "agent": "not_ready", "unready": 1},
                "release": {"node": "h2", "state": "creating"},
            },
            operations={"op1": {"server_id": "release"}},
            leases={"release": {"operation_id": "op1", "expires_at": "-1s"}},
        ),
        snapshots.POLICY,
    )
    assert [r.action for r in plan.repairs] == [Action.REVOKE_AND_RESUBMIT, Action.DEREGISTER_PROXY, Action.PUBLISH_DNS, Action.REGISTER_PROXY]


def test_an_escalation_reaches_people_with_its_command() -> None:
    plan = decide(snapshots.snapshot(servers={"fern": {"agent": "silent", "misses": 1}}), snapshots.POLICY)
    (event,) = announce.events(plan, snapshots.NOW)
    assert (event.kind, event.command) == (EventKind.EPISODE_ESCALATED, "zlh restart-agent fern")


def test_what_a_breaker_announced_is_not_announced_twice() -> None:
    row = {"check": "dns_record", "action": "publish_dns", "subject": "fern", "copies": 3, "episode_id": "dns_record/fern"}
    world = {"servers": {"fern": {"published": False}}, "episodes": {"dns_record/fern": {"reason": "repairing"}}}
    told = snapshots.snapshot(world, repairs=[{**row, "outcome": "failed"}])
    untold = snapshots.snapshot(world, repairs=[row])
    assert announce.events(decide(told, snapshots.POLICY), snapshots.NOW) == ()
    assert len(announce.events(decide(untold, snapshots.POLICY), snapshots.NOW)) == 1


def test_what_a_breaker_announced_is_over_for_people_too() -> None:
    """A drift may be gone in the sweep after its third failure, before any sweep has seen the open breaker."""
    row = {"check": "dns_record", "action": "publish_dns", "subject": "fern", "copies": 3, "episode_id": "dns_record/fern"}
    world = {"servers": {"fern": {}}, "episodes": {"dns_record/fern": {"reason": "repairing"}}}
    told = decide(snapshots.snapshot(world, repairs=[{**row, "outcome": "failed"}]), snapshots.POLICY)
    untold = decide(snapshots.snapshot(world, repairs=[{**row, "copies": 2, "outcome": "failed"}]), snapshots.POLICY)
    (over,) = announce.events(told, snapshots.NOW)
    assert (over.kind, over.over_of) == (EventKind.EPISODE_OVER, EventKind.EPISODE_ESCALATED)
    assert announce.events(untold, snapshots.NOW) == ()


def test_unknown_source_by_severity() -> None:
    once = decide(snapshots.snapshot(unknown={"dns": "x"}), snapshots.POLICY)
    thrice = decide(
        snapshots.snapshot(
            unknown={"dns": "x"},
            sources={"dns": {"misses": 2}},
            episodes={"source_unknown/source:dns": {"reason": "no_repair", "escalated_at": "-2m"}},
        ),
        snapshots.POLICY,
    )
    assert [e.kind for e in announce.events(once, snapshots.NOW)] == [EventKind.SOURCE_UNKNOWN]
    assert [e.kind for e in announce.events(thrice, snapshots.NOW)] == [EventKind.SOURCE_UNKNOWN_LONG]


def test_evidence_is_json() -> None:
    world = snapshots.snapshot(
        servers={"fern": {"copies": 6, "registered": False, "published": False}, "moss": {"agent": "silent"}},
        operations={"op1": {"server_id": "moss", "kind": "restart", "step": "configure", "step_deadline_at": "+1m"}},
        leases={"moss": {"operation_id": "op1", "expires_at": "-1s"}},
    )
    for finding in decide(world, snapshots.POLICY).findings:
        assert json.loads(json.dumps(dict(finding.evidence))) == dict(finding.evidence)


def test_two_operations_of_one_server_give_one_story_in_any_order() -> None:
    """The database forbids it; a snapshot that holds it anyway is no reason to flap."""
    operation = {"server_id": "fern", "kind": "restart", "state": "queued", "attempt_state": "submitted", "attempt_at": "-5s"}
    details = set()
    for names in (("op1", "op2"), ("op2", "op1")):
        world = snapshots.snapshot(servers={"fern": {"published": False}}, operations=dict.fromkeys(names, operation))
        details.add(decide(world, snapshots.POLICY).suppressed[0].detail)
    assert len(details) == 1


def test_a_stopped_container_is_told_by_proxmox_alone() -> None:
    """A finding names what it was told by, and a repair needs no word of an agent that cannot answer."""
    fern = {"container": "stopped", "agent": "silent", "unready": 1, "stopped": 1, "registered": False}
    repairs = decide(snapshots.snapshot(level=2, servers={"fern": fern}), snapshots.POLICY).repairs
    assert [r.finding.sources for r in repairs] == [{"database", "proxmox"}]
