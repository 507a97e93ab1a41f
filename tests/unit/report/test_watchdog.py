"""The watchdog: alerts once, daily, and when it is over; with and without a database, a channel, or a memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
import structlog

from flows.domain.event import Channel, Event, EventKind, Route, Severity
from flows.domain.ports import Delivery
from flows.errors import Unreachable
from flows.report import watchdog
from flows.settings import DeadmanSettings, Settings
from flows.state import outbox, sweeps
from flows.state.database import Database
from tests.unit.report.support import Clock, FakeNotifier

MINUTE, DAY = 60_000, 86_400_000


class World:
    """A watchdog that looks once a minute of virtual time."""

    def __init__(self, db: Database, notifier: FakeNotifier, settings: Settings, clock: Clock) -> None:
        self.db, self.notifier, self.settings, self.clock = db, notifier, settings, clock
        self.epoch = 0
        self.database_down = False

    async def look(self) -> watchdog.Report:
        with structlog.testing.capture_logs():
            return await watchdog.check(self.db, self.notifier, self.settings, clock=lambda: self.clock.now / 1000)

    async def minutes(self, number: int, *, sweeping: str | None = "clean") -> watchdog.Report:
        for _ in range(number):
            self.clock.advance(MINUTE)
            if sweeping:
                await self.sweep(sweeping)
            report = await self.look()
        return report

    async def sweep(self, outcome: str) -> None:
        self.epoch += 1
        async with self.db.write() as tx:
            await sweeps.start(tx, self.epoch, "h")
            await sweeps.finish(tx, self.epoch, outcome)

    async def put(self) -> None:
        async with self.db.write() as tx:
            await outbox.put(tx, Event(EventKind.HOST_DOWN, f"k{tx.now}", "what"), Route(Channel.CRITICAL, True, Severity.CRITICAL))

    async def deliver(self) -> None:
        async with self.db.write() as tx:
            for message in await outbox.claim(tx, "d", tx.now + 1, 50):
                await outbox.sent(tx, message.id)

    @property
    def heads(self) -> list[str]:
        return [text.splitlines()[0] for _, _, text, _ in self.notifier.arrived]


@pytest.fixture
def world(db: Database, notifier: FakeNotifier, settings: Settings, clock: Clock) -> World:
    return World(db, notifier, settings, clock)


@pytest.fixture
def break_database(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Callable[[], None]]:
    def break_() -> Callable[[], None]:
        async def refuse(*_: Any) -> None:
            raise Unreachable("database", why="connection refused")

        monkeypatch.setattr(sweeps, "last_finished", refuse)
        return monkeypatch.undo

    return break_


async def test_while_sweeps_finish_it_is_silent(world: World) -> None:
    for outcome in ("clean", "findings", "paused"):
        report = await world.minutes(10, sweeping=outcome)
        assert int(report) == watchdog.WELL
    assert world.notifier.arrived == []


@pytest.mark.parametrize("outcome", [None, "superseded", "failed"])
async def test_it_alerts_once_when_no_sweep_finishes(world: World, outcome: str | None) -> None:
    await world.minutes(5)
    report = await world.minutes(3, sweeping=outcome)
    assert int(report) == watchdog.WELL, "three intervals are allowed"
    report = await world.minutes(1, sweeping=outcome)
    assert int(report) == watchdog.PROBLEM
    await world.minutes(30, sweeping=outcome)
    [(channel, key, text, ping)] = world.notifier.arrived
    assert (channel, ping) == ("alerts-critical", True)
    assert key.startswith("watchdog/no_sweep/")
    assert "no sweep finishes: the last one did 4 min ago" in text
    assert "`zlh status`" in text


async def test_where_none_ever_finished_it_waits_as_long(world: World) -> None:
    assert int(await world.look()) == watchdog.WELL
    assert int(await world.minutes(3, sweeping=None)) == watchdog.WELL
    assert int(await world.minutes(1, sweeping=None)) == watchdog.PROBLEM
    assert "none ever did" in world.heads[0]


async def test_it_repeats_daily_and_says_when_it_is_over(world: World) -> None:
    timing = world.settings.timing.model_copy(update={"sweep_s": 1_200.0})
    world.settings = world.settings.model_copy(update={"timing": timing})
    await world.minutes(2)
    for _ in range(2 * 48 + 5):  # two days and two and a half hours, of which one is patience
        world.clock.advance(30 * MINUTE)
        await world.look()
    assert len(world.notifier.arrived) == 3
    assert len(set(world.notifier.keys)) == 3
    report = await world.minutes(1)
    assert int(report) == watchdog.WELL
    assert [problem.name for problem in report.over] == ["no_sweep"]
    assert world.heads[-1].startswith("**over: no sweep finishes")
    channel, _, _, ping = world.notifier.arrived[-1]
    assert (channel, ping) == ("alerts-critical", False)
    await world.minutes(5)
    assert len(world.notifier.arrived) == 4
    await world.minutes(65, sweeping=None)
    assert len(world.notifier.arrived) == 5, "the next trouble is another one"


async def test_a_standing_outbox_alerts(world: World) -> None:
    await world.minutes(2)
    await world.put()
    assert int(await world.minutes(3)) == watchdog.WELL
    assert int(await world.minutes(1)) == watchdog.PROBLEM
    assert "alerts are not delivered: 1 wait" in world.heads[0]
    await world.deliver()
    await world.minutes(1)
    assert world.heads[-1].startswith("**over: alerts are not delivered")


async def test_a_busy_outbox_does_not(world: World) -> None:
    await world.minutes(2)
    for _ in range(10):
        await world.put()
        await world.minutes(1)
        await world.put()
        async with world.db.write() as tx:  # one of two gets through: it moves
            [message] = await outbox.claim(tx, "d", tx.now + 1, 1)
            await outbox.sent(tx, message.id)
    assert world.notifier.arrived == []


async def test_a_critical_channel_that_alone_does_not_work_alerts(world: World) -> None:
    """The rest gets through, so that the outbox as a whole moves."""
    await world.minutes(2)
    await world.put()
    for number in range(30):
        async with world.db.write() as tx:
            await outbox.put(tx, Event(EventKind.CONTROLLER_ACTION, f"a{number}", "what"), Route(Channel.AUDIT, False, Severity.INFO))
            for message in await outbox.claim(tx, "d", tx.now + 1, 50, without=[Channel.CRITICAL]):
                await outbox.sent(tx, message.id)
        assert int(await world.minutes(1)) == (watchdog.WELL if number < 3 else watchdog.PROBLEM)
    [head] = world.heads
    assert "alerts-critical is not served: the oldest alert waits for 4 min while others are delivered" in head
    await world.deliver()
    await world.minutes(1)
    assert world.heads[-1].startswith("**over: alerts-critical is not served")


async def test_what_its_own_channel_refuses_is_said_in_another(world: World) -> None:
    await world.minutes(5)
    world.notifier.script = [Delivery(False, 404, permanent=True)]
    report = await world.minutes(4, sweeping=None)
    assert report.undelivered == 0
    [(channel, _, text, ping)] = world.notifier.arrived
    assert (channel, ping) == ("system-health", True)
    assert "no sweep finishes" in text


async def test_what_is_held_for_the_morning_does_not_stand_still(world: World) -> None:
    await world.minutes(2)
    async with world.db.write() as tx:
        held = Route(Channel.REPAIRS, False, Severity.INFO, tx.now + 100 * MINUTE)
        await outbox.put(tx, Event(EventKind.REPAIR_SUCCEEDED, "k", "what"), held)
    await world.minutes(20)
    assert world.notifier.arrived == []


async def test_without_a_database_it_alerts_too(world: World, break_database: Callable[[], Callable[[], None]]) -> None:
    await world.minutes(5)
    mend = break_database()
    report = await world.minutes(2, sweeping=None)
    assert int(report) == watchdog.BLIND
    assert world.notifier.arrived == [], "a moment's silence wakes nobody"
    report = await world.minutes(1, sweeping=None)
    assert int(report) == watchdog.BLIND
    assert [problem.name for problem in report.problems] == ["database"]
    await world.minutes(30, sweeping=None)
    assert len(world.notifier.arrived) == 1
    assert "the database has not answered for" in world.heads[0]
    mend()
    await world.minutes(1)
    assert len(world.notifier.arrived) == 2
    assert world.heads[1].startswith("**over: the database has not answered")


async def test_what_cannot_be_seen_is_neither_over_nor_new(world: World, break_database: Callable[[], Callable[[], None]]) -> None:
    await world.minutes(5)
    await world.minutes(5, sweeping=None)
    mend = break_database()
    report = await world.minutes(10, sweeping=None)
    assert {problem.name for problem in report.problems} == {"no_sweep", "database"}
    assert len(world.notifier.arrived) == 2
    mend()
    await world.minutes(1)
    assert len(world.notifier.arrived) == 4


async def test_it_tries_until_somebody_is_reached(world: World) -> None:
    await world.minutes(5)
    world.notifier.script = [Delivery(False, 500)] * 3 + [Unreachable("discord")]
    report = await world.minutes(4, sweeping=None)
    assert report.undelivered == 1
    assert int(report) == watchdog.PROBLEM
    await world.minutes(4, sweeping=None)
    assert len(world.notifier.arrived) == 1
    assert len(set(world.notifier.tried)) == 1, "under one key"
    world.notifier.script = [Delivery(False, 500)] * 2
    assert (await world.minutes(1)).undelivered == 1
    await world.minutes(5)
    assert [head.startswith("**over") for head in world.heads] == [False, True]


async def test_mail_is_enough(world: World) -> None:
    world.notifier.mail_on = True
    world.notifier.script = [Delivery(False, 404, permanent=True)] * 100
    await world.minutes(5)
    await world.minutes(10, sweeping=None)
    assert len(world.notifier.mailed) == 1


async def test_trouble_that_nobody_heard_of_ends_in_silence(world: World) -> None:
    await world.minutes(5)
    world.notifier.script = [Delivery(False, 500)] * 100
    await world.minutes(6, sweeping=None)
    world.notifier.script = []
    await world.minutes(5)
    assert world.notifier.arrived == []


async def test_after_a_reboot_it_waits_before_it_judges(world: World) -> None:
    await world.minutes(5)
    world.clock.advance(8 * 60 * MINUTE)  # the machine was off
    assert int(await world.look()) == watchdog.WELL
    await world.minutes(30)
    assert world.notifier.arrived == []


async def test_a_reboot_does_not_forget_what_was_announced(world: World) -> None:
    await world.minutes(5)
    await world.minutes(5, sweeping=None)
    world.clock.advance(8 * 60 * MINUTE)
    await world.minutes(2)
    assert [head.startswith("**over") for head in world.heads] == [False, True]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"problems": {"x": 3}}', b"\xff\xfe", b'{"problems": {}}'])
async def test_a_broken_file_is_a_new_beginning(world: World, content: bytes) -> None:
    path = world.settings.watchdog.state_file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    await world.minutes(2)
    await world.minutes(5, sweeping=None)
    assert len(world.notifier.arrived) == 1
    assert json.loads(path.read_text())["problems"]
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing is left beside it"


async def test_a_file_that_cannot_be_written_silences_nothing(world: World) -> None:
    world.settings.watchdog.state_file.parent.parent.mkdir(exist_ok=True)
    world.settings.watchdog.state_file.parent.write_text("a file, not a directory")
    world.clock.advance(MINUTE)
    assert int(await world.look()) == watchdog.WELL


@pytest.fixture
def heartbeat_url() -> Any:
    class Handler(BaseHTTPRequestHandler):
        seen: list[str] = []  # noqa: RUF012 - one server per test
        status = HTTPStatus.OK

        def do_GET(self) -> None:
            Handler.seen.append(self.path)
            self.send_response(Handler.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/ping/secret", Handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("outcome", "beats"), [("clean", 1), ("findings", 0), ("paused", 0), ("failed", 0), ("superseded", 0)])
async def test_the_deadman_hears_of_clean_sweeps_alone(heartbeat_url: Any, outcome: str, beats: int) -> None:
    url, handler = heartbeat_url
    assert await watchdog.deadman(DeadmanSettings(url=url), outcome) is (beats == 1)
    assert handler.seen == ["/ping/secret"] * beats


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:1/secret", "no url/secret", "ftp://127.0.0.1/secret", "http://[/secret"])
async def test_a_deadman_that_cannot_be_reached_harms_nobody(url: str) -> None:
    with structlog.testing.capture_logs() as logs:
        assert await watchdog.deadman(DeadmanSettings(url=url), "clean") is False
    assert len(logs) == (url != "")
    assert "secret" not in str(logs)


async def test_a_deadman_that_refuses_is_logged(heartbeat_url: Any) -> None:
    url, handler = heartbeat_url
    handler.status = HTTPStatus.INTERNAL_SERVER_ERROR
    with structlog.testing.capture_logs() as logs:
        assert await watchdog.deadman(DeadmanSettings(url=url), "clean") is False
    assert "status 500" in logs[0]["error"]
