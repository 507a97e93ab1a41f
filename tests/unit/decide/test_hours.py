"""Ping rules and the digest's day through nights, weekends and every change of the clocks: properties over zones, hours and years."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.decide.calendar import Calendar
from flows.decide.routing import route
from flows.domain.event import Event, EventKind, Severity

K = EventKind
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
#: With changes of an hour, of half an hour (Lord Howe), at midnight itself (Beirut, Santiago), southern ones, and none.
ZONES = "UTC Europe/Berlin America/New_York America/St_Johns Australia/Lord_Howe Asia/Beirut America/Santiago Asia/Kathmandu Pacific/Auckland".split()
zones = st.sampled_from(ZONES)
halves = st.integers(0, 47).map(lambda half: f"{half // 2:02}:{half % 2 * 30:02}")
calendars = st.builds(
    Calendar,
    timezone=zones,
    business_days=st.sets(st.integers(0, 6)).map(lambda days: tuple(sorted(days))),
    business_from=halves,
    business_to=halves,
    quiet_from=halves,
    quiet_to=halves,
)
#: 2020 to 2030, and around the moments at which clocks change more often than chance would.
CHANGES = [
    int(datetime(year, month, day, hour, tzinfo=UTC).timestamp())
    for year in (2025, 2026)
    for month, day, hour in ((3, 29, 1), (10, 26, 1), (11, 2, 6))
]
moments = st.one_of(
    st.integers(1_577_836_800, 1_893_456_000), st.builds(lambda at, off: at + off, st.sampled_from(CHANGES), st.integers(-90_000, 90_000))
)


@given(calendars, moments, st.sampled_from(list(K)))
def test_nothing_but_a_repair_of_level_2_ever_waits(calendar: Calendar, at_s: int, kind: EventKind) -> None:
    found = route(Event(kind, "k", "what", level=1), calendar, at_s * 1000)
    assert found.not_before is None
    if found.severity is Severity.CRITICAL:
        assert found.ping, "who is to be woken is woken at any hour"


@given(calendars, moments)
def test_a_repair_of_level_2_never_pings_into_the_night_nor_the_other_job(calendar: Calendar, at_s: int) -> None:
    at = at_s * 1000
    found = route(Event(K.REPAIR_SUCCEEDED, "k", "what", level=2), calendar, at)
    goes_out = at if found.not_before is None else found.not_before
    assert (found.not_before is not None) == calendar.is_quiet(at)
    assert at <= goes_out <= at + 25 * HOUR_MS
    assert found.ping is not calendar.is_business(goes_out)
    if calendar.quiet_from != calendar.quiet_to:
        assert not calendar.is_quiet(goes_out)


@given(calendars, moments, st.sampled_from([k for k in K if k is not K.EPISODE_OVER]))
def test_what_is_over_never_pings(calendar: Calendar, at_s: int, kind: EventKind) -> None:
    found = route(Event(K.EPISODE_OVER, "k", "what", over_of=kind), calendar, at_s * 1000)
    assert not found.ping
    assert found.not_before is None


@pytest.mark.parametrize("zone", ZONES)
def test_every_business_day_of_a_year_has_its_eight_hours_and_every_night_ends_at_seven(zone: str) -> None:
    """By the wall: whatever the clocks did in the night."""
    calendar, tz = Calendar(timezone=zone), ZoneInfo(zone)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    business: dict[date, int] = {}
    for half in range(2 * 24 * 365):
        moment = began + timedelta(minutes=30 * half)
        at, wall = int(moment.timestamp() * 1000), moment.astimezone(tz)
        if calendar.is_business(at):
            assert wall.weekday() < 5
            business[wall.date()] = business.get(wall.date(), 0) + 1
        ends = calendar.quiet_ends(at)
        if ends is not None:
            end = datetime.fromtimestamp(ends / 1000, UTC).astimezone(tz)
            assert (end.hour, end.minute) == (7, 0)
            assert timedelta(0) < end - wall <= timedelta(hours=9)
    whole = sorted(business)[1:-1]
    assert {business[day] for day in whole} == {16}
    assert len(whole) > 255


@pytest.mark.parametrize("zone", ZONES)
def test_the_digest_of_each_day_is_another_one(zone: str) -> None:
    """It is written at 07:00 UTC and named by the operator's date: through a whole year no date comes twice, and none is left out."""
    calendar = Calendar(timezone=zone)
    first = int(datetime(2026, 1, 1, 7, tzinfo=UTC).timestamp() * 1000)
    days = [date.fromisoformat(calendar.day(first + n * DAY_MS)) for n in range(366)]
    assert [b - a for a, b in pairwise(days)] == [timedelta(days=1)] * 365


@given(zones, moments)
def test_midnight_on_the_wall_begins_another_digest(zone: str, at_s: int) -> None:
    calendar = Calendar(timezone=zone)
    local = datetime.fromtimestamp(at_s, UTC).astimezone(ZoneInfo(zone))
    assert calendar.day(at_s * 1000) == local.date().isoformat()
