"""Business and quiet hours as the wall clock shows them, through daylight-saving changes."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.decide.calendar import Calendar
from flows.errors import BadInput
from flows.settings import NotifySettings

BERLIN = Calendar(timezone="Europe/Berlin")


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> int:
    """Milliseconds of a local time; ``fold`` 1 is the second of two."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp() * 1000)


def wall(ms: int | None, zone: str = "Europe/Berlin") -> str:
    assert ms is not None
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo(zone)).strftime("%Y-%m-%dT%H:%M %Z")


@pytest.mark.parametrize(
    ("time", "business"),
    [
        ("2025-10-08T08:59", False),  # a Wednesday
        ("2025-10-08T09:00", True),
        ("2025-10-08T16:59", True),
        ("2025-10-08T17:00", False),
        ("2025-10-11T12:00", False),  # a Saturday
        ("2025-10-12T12:00", False),
        ("2025-10-13T12:00", True),
    ],
)
def test_business_hours(time: str, business: bool) -> None:
    assert BERLIN.is_business(at(time)) is business


@pytest.mark.parametrize(
    ("time", "ends"),
    [
        ("2025-10-08T22:59", None),
        ("2025-10-08T23:00", "2025-10-09T07:00 CEST"),
        ("2025-10-08T23:59", "2025-10-09T07:00 CEST"),
        ("2025-10-09T00:00", "2025-10-09T07:00 CEST"),
        ("2025-10-09T06:59", "2025-10-09T07:00 CEST"),
        ("2025-10-09T07:00", None),
        ("2025-12-31T23:30", "2026-01-01T07:00 CET"),
        # The clocks change in the night: seven on the wall is seven on the wall.
        ("2026-03-28T23:30", "2026-03-29T07:00 CEST"),
        ("2025-10-25T23:30", "2025-10-26T07:00 CET"),
    ],
)
def test_quiet_hours(time: str, ends: str | None) -> None:
    assert BERLIN.is_quiet(at(time)) is (ends is not None)
    if ends is None:
        assert BERLIN.quiet_ends(at(time)) is None
    else:
        assert wall(BERLIN.quiet_ends(at(time))) == ends


def test_the_night_is_an_hour_shorter_and_longer_when_the_clocks_change() -> None:
    hours = [((BERLIN.quiet_ends(at(t)) or 0) - at(t)) / 3_600_000 for t in ("2026-03-28T23:00", "2025-10-25T23:00", "2025-11-01T23:00")]
    assert hours == [7, 9, 8]


def test_an_end_within_the_hour_that_comes_twice() -> None:
    late = Calendar(timezone="Europe/Berlin", quiet_from="22:00", quiet_to="02:30")
    first, second = at("2025-10-26T02:15"), at("2025-10-26T02:15", fold=1)
    assert wall(late.quiet_ends(first)) == "2025-10-26T02:30 CEST"
    assert wall(late.quiet_ends(second)) == "2025-10-26T02:30 CET"


def test_an_end_within_the_hour_that_never_comes() -> None:
    late = Calendar(timezone="Europe/Berlin", quiet_from="22:00", quiet_to="02:30")
    ends = late.quiet_ends(at("2026-03-29T01:30"))
    assert ends is not None
    assert at("2026-03-29T01:30") < ends <= at("2026-03-29T03:30")


def test_business_over_midnight_belongs_to_the_day_it_began() -> None:
    night = Calendar(timezone="Europe/Berlin", business_days=(4,), business_from="22:00", business_to="06:00")
    assert night.is_business(at("2025-10-10T22:00"))  # Friday evening
    assert night.is_business(at("2025-10-11T05:59"))  # Saturday morning
    assert not night.is_business(at("2025-10-11T22:00"))
    assert not night.is_business(at("2025-10-10T05:00"))


def test_an_empty_span_never_holds_and_a_whole_day_always() -> None:
    never = Calendar(quiet_from="00:00", quiet_to="00:00")
    always = Calendar(business_days=tuple(range(7)), business_from="00:00", business_to="24:00")
    for hour in range(24):
        assert not never.is_quiet(hour * 3_600_000)
        assert always.is_business(hour * 3_600_000)


def test_other_zones_have_other_days() -> None:
    moment = at("2025-10-12T23:30", "UTC")
    assert Calendar(timezone="Pacific/Auckland").day(moment) == "2025-10-13"
    assert Calendar(timezone="Pacific/Auckland").is_business(moment)  # Monday, 12:30
    assert not Calendar(timezone="America/New_York").is_business(moment)


def test_the_settings_defaults_are_a_calendar() -> None:
    n = NotifySettings()
    assert Calendar(n.timezone, n.business_days, n.business_from, n.business_to, n.quiet_from, n.quiet_to) == Calendar()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timezone", "Europe/Atlantis"),
        ("timezone", "../etc/passwd"),
        ("timezone", ""),
        ("business_days", (7,)),
        ("business_from", "9am"),
        ("business_from", "09:60"),
        ("quiet_to", "24:01"),
        ("quiet_from", "7:5"),
        ("quiet_from", ""),
    ],
)
def test_what_is_wrong_is_named(field: str, value: object) -> None:
    with pytest.raises(BadInput) as caught:
        Calendar(**{field: value})  # type: ignore[arg-type]  # that is the point
    assert caught.value.field == field


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu"])


@given(ZONES, st.integers(0, 47), st.integers(0, 47), st.integers(1_577_836_800, 1_893_456_000))
def test_after_the_end_of_quiet_hours_it_is_no_longer_quiet(zone: str, begins: int, ends: int, moment_s: int) -> None:
    """Whatever zone, span and time: the end lies ahead, within a day and an hour, and what is held until then may go out."""
    clock = [f"{half // 2:02}:{half % 2 * 30:02}" for half in (begins, ends)]
    calendar = Calendar(timezone=zone, quiet_from=clock[0], quiet_to=clock[1])
    moment = moment_s * 1000
    end = calendar.quiet_ends(moment)
    assert (end is not None) == calendar.is_quiet(moment)
    if end is not None:
        assert moment < end <= moment + 25 * 3_600_000
