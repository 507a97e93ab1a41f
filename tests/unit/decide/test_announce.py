"""What people read of a transition: where it is, under which key, and what they can do."""

from __future__ import annotations

from typing import Any

import pytest

from flows.decide import announce
from flows.decide.plan import decide
from flows.domain.event import Event
from flows.domain.finding import Check, EpisodeChange, Finding, Plan, Transition
from tests.support import snapshots
from tests.support.snapshots import NOW, POLICY

ID = "0f5a8f5e-4a3c-4a57-9a3e-8f3f2f1c7d10"


def _events(**given: Any) -> tuple[Event, ...]:
    return announce.events(decide(snapshots.snapshot(given), POLICY), NOW)


def test_a_server_is_called_by_its_name() -> None:
    """People know names; an id means nothing to them at night."""
    (event,) = _events(servers={"fern": {"id": ID, "name": "fern", "agent": "silent", "misses": 1}})
    assert event.where == "fern on pve1"


def test_so_it_is_when_it_is_over() -> None:
    world = {"servers": {"fern": {"id": ID, "name": "fern"}}}
    episode = {"reason": "level_disabled", "escalated_at": "-5m", "server_id": ID}
    (event,) = _events(**world, episodes={f"agent_offline/{ID}": episode})
    assert (event.where, event.done) == ("fern on pve1", "it is over")


def test_an_operation_is_called_by_its_server_and_its_id() -> None:
    (event,) = _events(
        servers={"fern": {"id": ID, "name": "fern", "state": "creating"}},
        operations={"op1": {"server_id": ID, "state": "cleanup_required", "attempt_state": "ended", "undo_failures": 3, "progress_at": "-1h"}},
    )
    assert event.where == "fern on pve1, operation op1"


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"nodes": {"pve1": False}}, "host pve1"),
        ({"unknown": {"dns": "REFUSED"}}, "source dns"),
        ({"queues": [{"queue": "operations", "waiting": 1, "oldest_at": "-15m"}]}, "queue operations"),
        ({"leases": {"fern": {"kind": "restore", "holder": "r", "expires_at": "-1h"}}}, "fern on pve1"),
        ({"leases": {"dns:ghost": {"kind": "restore", "holder": "r", "expires_at": "-1h"}}}, "lease dns:ghost"),
        (
            {"level": 0, "servers": {"fern": {"id": ID, "name": "fern", "state": "suspended", "registered": True, "agent": "stopped"}}},
            "fern on pve1, proxy entry fern",
        ),
    ],
)
def test_what_is_no_server_is_called_what_it_is(given: dict[str, Any], where: str) -> None:
    assert [event.where for event in _events(**given)] == [where]


def test_an_episode_of_a_server_that_is_gone_is_called_by_its_subject() -> None:
    (event,) = _events(servers={}, episodes={f"agent_offline/{ID}": {"reason": "no_repair", "escalated_at": "-5m", "server_id": ID}})
    assert event.where == ID


def test_a_long_name_does_not_cut_off_the_time() -> None:
    """The outbox shortens keys safely; the same key twice would swallow a later episode's alert."""
    finding = Finding(Check.DNS_STALE_RECORD, "dns:" + "x" * 250, "published", 1)
    keys: set[str] = set()
    for now in (NOW, NOW + 1):
        plan = Plan((), (), (EpisodeChange(Transition.OPENED, finding.key, finding, None, "no_repair", announce=True),))
        keys.update(event.key for event in announce.events(plan, now))
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("given", "next_"),
    [
        ({"nodes": {"pve1": False}}, "said once more if it grows worse, and when it is over"),
        ({"leases": {"fern": {"kind": "restore", "holder": "r", "expires_at": "-1h"}}}, "said once more if it grows worse, and when it is over"),
        ({"servers": {"fern": {"id": ID, "name": "fern", "agent": "silent", "misses": 1}}}, "recalled daily while it lasts"),
    ],
)
def test_it_is_said_when_one_hears_of_it_again(given: dict[str, Any], next_: str) -> None:
    """Checks with a channel of their own are not recalled."""
    assert [event.next for event in _events(**given)] == [next_]


def test_a_withdrawal_that_keeps_failing_says_so() -> None:
    row = {"check": "dns_stale_record", "action": "withdraw_dns", "subject": "dns:ghost.play.example", "outcome": "failed", "copies": 3}
    (event,) = _events(
        names={"ghost.play.example": {"A": "203.0.113.7", "owner": "gone"}},
        sightings={"dns:ghost.play.example": 2},
        repairs=[row | {"counted": False}],
    )
    assert (event.where, event.done) == ("DNS name ghost.play.example", "tried again and again, without success")
    assert event.command == "zlh findings --check dns_stale_record"
