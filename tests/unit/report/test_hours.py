"""What goes out when, as the dispatcher really sends it: Discord and mail through a night, a weekend and both changes of the clocks. Virtual time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from flows.decide.calendar import Calendar
from flows.decide.routing import route
from flows.domain.event import Event, EventKind
from flows.report import digest
from flows.report.dispatch import Dispatcher
from flows.settings import Settings
from flows.state import outbox
from flows.state.database import Database
from tests.unit.report.support import Clock, FakeNotifier

BERLIN = Calendar(timezone="Europe/Berlin")
MINUTE = 60_000


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000)


def wall(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo("Europe/Berlin")).strftime("%a %H:%M")


@pytest.fixture
def passing(db: Database, notifier: FakeNotifier, settings: Settings, clock: Clock) -> Callable[..., object]:
    """Lets hours pass in steps of 10 minutes; what arrived is noted with its time, its channel's and its mail's."""
    dispatcher = Dispatcher(db, notifier, settings, "d", clock=lambda: clock.now / 1000)

    async def until(end: str) -> list[tuple[str, str, bool]]:
        seen: list[tuple[str, str, bool]] = []
        while clock.now <= at(end):
            known, mailed = len(notifier.arrived), len(notifier.mailed)
            await dispatcher.drain()
            seen += [(wall(clock.now), key, ping) for _, key, _, ping in notifier.arrived[known:]]
            seen += [(wall(clock.now), f"mail {key}", False) for key in notifier.mailed[mailed:]]
            clock.advance(10 * MINUTE)
        return seen

    return until


async def put(db: Database, *events: Event) -> None:
    async with db.write() as tx:
        for event in events:
            await outbox.put(tx, event, route(event, BERLIN, tx.now))


def repaired(key: str) -> Event:
    return Event(EventKind.REPAIR_SUCCEEDED, key, "restarted", level=2)


@pytest.mark.parametrize(
    ("night", "morning"),
    [
        ("2025-10-08T23:30", "2025-10-09T08:00"),
        ("2026-03-28T23:30", "2026-03-29T08:00"),  # an hour is missing
        ("2025-10-25T23:30", "2025-10-26T08:00"),  # an hour comes twice
        ("2025-12-31T23:30", "2026-01-01T08:00"),
    ],
)
async def test_a_night(db: Database, notifier: FakeNotifier, clock: Clock, passing: Callable[..., object], night: str, morning: str) -> None:
    """The page goes at once, by mail too; the repair, its ping and its mail wait for seven on the wall."""
    clock.now, notifier.mail_on = at(night), True
    day = wall(at(morning))[:3]
    await put(db, Event(EventKind.HOST_DOWN, "page", "host down"), repaired("repair"))
    assert await passing(morning) == [  # type: ignore[misc]  # the fixture's function is a coroutine's
        (wall(at(night)), "page", True),
        (wall(at(night)), "mail page", False),
        (f"{day} 07:00", "repair", True),
        (f"{day} 07:00", "mail repair", False),
    ]


async def test_a_week(db: Database, clock: Clock, passing: Callable[..., object]) -> None:
    """A repair at noon of each day: it pings on the weekend alone, since on the other days the operator is at the other job."""
    said: list[tuple[str, str, bool]] = []
    for day in range(6, 13):
        clock.now = at(f"2025-10-{day:02}T12:00")
        await put(db, repaired(f"r{day}"))
        said += await passing(f"2025-10-{day:02}T12:00")  # type: ignore[misc]  # as above
    assert [(when[:3], ping) for when, _, ping in said] == [
        ("Mon", False), ("Tue", False), ("Wed", False), ("Thu", False), ("Fri", False), ("Sat", True), ("Sun", True),
    ]  # fmt: skip


@pytest.mark.parametrize("first", ["2026-03-28T00:00", "2025-10-25T00:00"])
async def test_one_digest_a_day_whoever_asks_how_often(db: Database, notifier: FakeNotifier, settings: Settings, clock: Clock, first: str) -> None:
    """Asked for every three hours through three days, one of which has 23 or 25 hours."""
    dispatcher, begun = Dispatcher(db, notifier, settings, "d", clock=lambda: clock.now / 1000), at(first)
    days: list[str] = []
    for hours in range(0, 72, 3):
        clock.now = begun + hours * 60 * MINUTE
        await digest.send(db, BERLIN)
        await dispatcher.drain()
        days.append(f"digest/{BERLIN.day(clock.now)}")
    assert sorted(set(days)) == notifier.keys
    assert not any(ping for _, _, _, ping in notifier.arrived)
