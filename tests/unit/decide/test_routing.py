"""The routing table of notifications, row by row."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from flows.decide.calendar import Calendar
from flows.decide.routing import route
from flows.domain.event import Channel, Event, EventKind, Route, Severity

K, C = EventKind, Channel
CALENDAR = Calendar(timezone="Europe/Berlin")


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000)


WORK, EVENING, NIGHT = at("2025-10-08T12:00"), at("2025-10-08T19:00"), at("2025-10-08T23:30")
MORNING = at("2025-10-09T07:00")

#: kind → (channel, ping): the table, rows that depend on more than the kind apart.
TABLE = {
    K.BREAKER_OPENED: (C.CRITICAL, True),
    K.EPISODE_ESCALATED: (C.CRITICAL, True),
    K.EPISODE_RECALLED: (C.CRITICAL, False),
    K.REVIEW_REQUESTED: (C.CRITICAL, True),
    K.PROVISIONING_FAILED: (C.PROVISIONING, True),
    K.PROVISIONING_SUCCEEDED: (C.PROVISIONING, False),
    K.OPERATION_FAILED: (C.PROVISIONING, True),
    K.BILLING_WEBHOOK_FAILED: (C.BILLING, True),
    K.PAYMENT_FAILED: (C.BILLING, True),
    K.PAYMENT_RECEIVED: (C.BILLING, False),
    K.PLAN_CHANGED: (C.BILLING, False),
    K.BACKUP_MISSED: (C.HEALTH, False),
    K.BACKUP_MISSED_TWICE: (C.CRITICAL, True),
    K.SOURCE_UNKNOWN: (C.HEALTH, False),
    K.SOURCE_UNKNOWN_LONG: (C.CRITICAL, True),
    K.HOST_DOWN: (C.CRITICAL, True),
    K.SOURCE_DRIFT: (C.CRITICAL, True),
    K.QUEUE_STALLED: (C.CRITICAL, True),
    K.LEASE_ABANDONED: (C.CRITICAL, True),
    K.NO_SWEEP: (C.CRITICAL, True),
    K.AUTOMATION_PAUSED: (C.HEALTH, False),
    K.AUTOMATION_RESUMED: (C.HEALTH, False),
    K.DAILY_DIGEST: (C.HEALTH, False),
    K.CONTROLLER_ACTION: (C.AUDIT, False),
}


@pytest.mark.parametrize("kind", list(EventKind))
@pytest.mark.parametrize("now", [WORK, EVENING, NIGHT])
def test_every_kind_has_a_route_at_any_hour(kind: EventKind, now: int) -> None:
    found = route(Event(kind, "k", "what"), CALENDAR, now)
    if kind in TABLE:
        assert (found.channel, found.ping) == TABLE[kind]
        assert found.not_before is None, "only a level 2 repair is held"
    else:
        assert kind in {K.REPAIR_SUCCEEDED, K.PATCH_FINISHED, K.EPISODE_OVER}, "a kind without a row here"


@pytest.mark.parametrize("kind", [k for k, (channel, ping) in TABLE.items() if channel is C.CRITICAL and ping])
def test_what_wakes_a_person_is_critical(kind: EventKind) -> None:
    assert route(Event(kind, "k", "what"), CALENDAR, WORK).severity is Severity.CRITICAL


@pytest.mark.parametrize("now", [WORK, EVENING, NIGHT])
def test_a_level_1_repair_never_pings_and_never_waits(now: int) -> None:
    for level in (0, 1):
        assert route(Event(K.REPAIR_SUCCEEDED, "k", "what", level=level), CALENDAR, now) == Route(C.REPAIRS, False, Severity.INFO)


@pytest.mark.parametrize(
    ("now", "ping", "held"),
    [
        (WORK, False, None),
        (EVENING, True, None),
        (NIGHT, True, MORNING),
        (at("2025-10-09T06:59"), True, MORNING),
        (at("2025-10-11T12:00"), True, None),  # a Saturday: the operator is free
    ],
)
def test_a_level_2_repair_pings_only_when_the_operator_is_free_and_awake(now: int, ping: bool, held: int | None) -> None:
    found = route(Event(K.REPAIR_SUCCEEDED, "k", "what", level=2), CALENDAR, now)
    assert found == Route(C.REPAIRS, ping, Severity.INFO, held)


def test_whether_a_held_message_pings_is_judged_when_it_goes_out() -> None:
    sleeps_late = Calendar(timezone="Europe/Berlin", quiet_from="23:00", quiet_to="10:00")
    found = route(Event(K.REPAIR_SUCCEEDED, "k", "what", level=2), sleeps_late, NIGHT)
    assert found == Route(C.REPAIRS, False, Severity.INFO, at("2025-10-09T10:00"))


@pytest.mark.parametrize(("failed", "severity"), [(False, Severity.INFO), (True, Severity.WARNING)])
def test_a_patch_run_pings_only_if_something_failed(failed: bool, severity: Severity) -> None:
    assert route(Event(K.PATCH_FINISHED, "k", "what", failed=failed), CALENDAR, WORK) == Route(C.HEALTH, failed, severity)


@pytest.mark.parametrize("kind", [k for k in EventKind if k is not K.EPISODE_OVER])
def test_what_is_over_is_told_where_it_was_announced_without_a_ping(kind: EventKind) -> None:
    announced = route(Event(kind, "k", "what"), CALENDAR, WORK)
    assert route(Event(K.EPISODE_OVER, "k", "what", over_of=kind), CALENDAR, NIGHT) == Route(announced.channel, False, Severity.INFO)


@pytest.mark.parametrize("over_of", [None, K.EPISODE_OVER])
def test_what_nobody_remembers_announcing_goes_to_critical(over_of: EventKind | None) -> None:
    assert route(Event(K.EPISODE_OVER, "k", "what", over_of=over_of), CALENDAR, WORK).channel is C.CRITICAL
