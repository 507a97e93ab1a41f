"""The dispatcher: what becomes of a message when Discord, the mail server, the database or the dispatcher itself fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
import structlog
from pydantic import SecretStr

from flows.cli import doctor
from flows.clients.notifier import DiscordNotifier
from flows.decide import message
from flows.domain.event import Channel, Event, EventKind, Route, Severity
from flows.domain.ports import Delivery
from flows.errors import BadAnswer, Unreachable
from flows.report import dispatch
from flows.report.dispatch import Dispatcher
from flows.settings import Settings
from flows.state import outbox
from flows.state.database import Database
from tests.unit.report.support import Clock, FakeNotifier, Killed, until

PAGE = Route(Channel.CRITICAL, True, Severity.CRITICAL)
REPAIRS = Route(Channel.REPAIRS, False, Severity.INFO)
AUDIT = Route(Channel.AUDIT, False, Severity.INFO)
REFUSED = Delivery(False, 500, reason="Discord failed with 500")
LOST = Delivery(False, ambiguous=True, reason="no answer")


async def put(db: Database, *keys: str, route: Route = PAGE, kind: EventKind = EventKind.HOST_DOWN) -> None:
    async with db.write() as tx:
        await outbox.put_all(tx, [(Event(kind, key, what=f"what of {key}", command="zlh explain x"), route) for key in keys])


@pytest.fixture
def dispatcher(db: Database, notifier: FakeNotifier, settings: Settings, clock: Clock) -> Dispatcher:
    return Dispatcher(db, notifier, settings, "d1", clock=lambda: clock.now / 1000)


async def drained(dispatcher: Dispatcher, clock: Clock, *, step_ms: int = 1_000, limit: int = 200) -> None:
    """Lets time pass until nothing waits."""
    for _ in range(limit):
        await dispatcher.drain()
        async with dispatcher.database.read() as tx:
            if not (await outbox.stats(tx)).waiting:
                return
        clock.advance(step_ms)
    pytest.fail("the outbox does not empty")


async def test_a_message_reaches_its_channel_once(dispatcher: Dispatcher, notifier: FakeNotifier, db: Database) -> None:
    await put(db, "k")
    assert await dispatcher.drain() == 1
    assert await dispatcher.drain() == 0
    [(channel, key, text, ping)] = notifier.arrived
    assert (channel, key, ping) == ("alerts-critical", "k", True)
    assert "what of k" in text
    assert "`zlh explain x`" in text


async def test_refused_is_tried_again_with_growing_pauses(dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock) -> None:
    notifier.script = [REFUSED] * 6
    await put(db, "k")
    times = []
    while not notifier.arrived:
        before = len(notifier.tried)
        await dispatcher.drain()
        if len(notifier.tried) > before:
            times.append(clock.now)
        clock.advance(10)
    pauses = [b - a for a, b in pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 16 * pauses[0]
    assert notifier.keys == ["k"]


async def test_retry_after_holds_the_whole_channel_and_no_other(dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock) -> None:
    await put(db, "a", "b")
    notifier.script = [Delivery(False, 429, retry_after_s=7.0, reason="slow down")]
    await dispatcher.drain()
    assert notifier.tried == ["a"]  # b would only have met the same answer
    await put(db, "c")
    await put(db, "other", route=REPAIRS)
    clock.advance(6_900)
    await dispatcher.drain()
    assert notifier.keys == ["other"]
    clock.advance(101)
    await dispatcher.drain()
    assert notifier.keys == ["other", "a", "b", "c"]


async def test_a_lost_answer_is_repeated_under_the_same_key(dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock) -> None:
    notifier.script = [lambda: LOST]  # it arrived, the answer did not
    await put(db, "k")
    await drained(dispatcher, clock)
    assert notifier.keys == ["k", "k"]


@pytest.mark.parametrize("error", [Unreachable("discord"), BadAnswer("discord"), ValueError("a bug"), RuntimeError("a bug")])
async def test_whatever_the_notifier_raises_nothing_is_lost(
    dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock, error: Exception
) -> None:
    notifier.script = [error]
    await put(db, "k")
    await drained(dispatcher, clock, step_ms=10_000)
    assert notifier.keys == ["k"]


async def test_no_answer_in_time_is_ambiguous(dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock, monkeypatch: Any) -> None:
    monkeypatch.setattr(dispatch, "_GRACE_S", 0.0)

    async def hang(*_: Any, **__: Any) -> Delivery:
        await asyncio.sleep(60)
        raise AssertionError

    send = notifier.send
    monkeypatch.setattr(notifier, "send", hang)
    await put(db, "k")
    await dispatcher.drain()
    monkeypatch.setattr(notifier, "send", send)
    async with db.write() as tx:
        assert await outbox.fold(tx, over=0, line=str) == 0  # it may have arrived
    await drained(dispatcher, clock)
    assert notifier.keys == ["k"]


async def test_a_refused_message_does_not_hold_back_the_next(dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock) -> None:
    notifier.script = [Delivery(False, 400, permanent=True, reason="Discord refused the message")]
    await put(db, "poison", "good")
    await dispatcher.drain()
    assert notifier.keys == ["good"]
    clock.advance(59_000)
    await dispatcher.drain()
    assert notifier.tried.count("poison") == 1  # only a person's correction can help: no hurry
    clock.advance(1_001)
    await dispatcher.drain()
    assert notifier.keys == ["good", "poison"]


async def test_one_that_fails_for_hours_lets_the_others_through(
    dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock, monkeypatch: Any
) -> None:
    send = notifier.send

    async def picky(channel: str, text: str, *, ping: bool, key: str) -> Delivery:
        return REFUSED if key == "poison" else await send(channel, text, ping=ping, key=key)

    monkeypatch.setattr(notifier, "send", picky)
    await put(db, "poison")
    for number in range(100):
        await put(db, f"k{number}")
        await dispatcher.drain()
        clock.advance(10_000)
    await dispatcher.drain()
    assert len(notifier.keys) >= 95


@pytest.mark.parametrize("arrived", [False, True])
async def test_death_in_mid_send_repeats_under_the_same_key(
    open_db: Callable[..., Database], db: Database, notifier: FakeNotifier, settings: Settings, clock: Clock, arrived: bool
) -> None:
    await put(db, *(f"k{n}" for n in range(3)))
    notifier.script = [(lambda: Killed()) if arrived else Killed()]
    with pytest.raises(Killed):
        await Dispatcher(db, notifier, settings, "dead", clock=lambda: clock.now / 1000).drain()
    heir = Dispatcher(open_db(), notifier, settings, "heir", clock=lambda: clock.now / 1000)
    assert await heir.drain() == 0  # still the dead one's
    clock.advance(int(settings.notify.claim_s * 1000) + 1)
    await heir.drain()
    assert notifier.keys == (["k0"] if arrived else []) + ["k0", "k1", "k2"]


async def test_death_between_answer_and_note_repeats_under_the_same_key(
    db: Database, notifier: FakeNotifier, settings: Settings, clock: Clock, monkeypatch: Any
) -> None:
    await put(db, "k")

    async def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(outbox, "sent", die)
        await Dispatcher(db, notifier, settings, "dead", clock=lambda: clock.now / 1000).drain()
    clock.advance(int(settings.notify.claim_s * 1000) + 1)
    await Dispatcher(db, notifier, settings, "heir", clock=lambda: clock.now / 1000).drain()
    assert notifier.keys == ["k", "k"]


async def test_two_dispatchers_send_each_message_once(
    open_db: Callable[..., Database], db: Database, notifier: FakeNotifier, settings: Settings, clock: Clock
) -> None:
    settings = settings.model_copy(update={"notify": settings.notify.model_copy(update={"fold_over": 1_000})})
    await put(db, *(f"k{n}" for n in range(120)))
    both = [Dispatcher(open_db(), notifier, settings, f"d{n}", clock=lambda: clock.now / 1000) for n in range(2)]
    for _ in range(3):
        await asyncio.gather(*(d.drain() for d in both))
    assert len(notifier.keys) == len(set(notifier.keys)) == 120


async def test_a_batch_that_would_outlive_its_claim_is_given_back(
    db: Database, notifier: FakeNotifier, settings: Settings, clock: Clock, monkeypatch: Any
) -> None:
    await put(db, *(f"k{n}" for n in range(4)))
    send = notifier.send

    async def slow(channel: str, text: str, *, ping: bool, key: str) -> Delivery:
        clock.advance(14_000)
        return await send(channel, text, ping=ping, key=key)

    monkeypatch.setattr(notifier, "send", slow)
    await Dispatcher(db, notifier, settings, "d1", clock=lambda: clock.now / 1000).drain()
    assert notifier.keys == ["k0", "k1"]
    other = Dispatcher(db, notifier, settings, "d2", clock=lambda: clock.now / 1000)
    await other.drain()
    assert notifier.keys[2:] == ["k2", "k3"]  # at once: nobody waits for a claim that was given up


async def test_after_a_day_it_is_dead_and_the_next_one_says_so(dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock) -> None:
    await put(db, "lost one")
    notifier.script = [REFUSED] * 1_000
    for _ in range(300):
        await dispatcher.drain()
        clock.advance(290_000)
    assert not notifier.keys
    async with db.read() as tx:
        assert (await outbox.stats(tx)).dead == 1
    notifier.script = [REFUSED]  # one that does not get through tells nobody
    await put(db, "next", "later")
    await put(db, "elsewhere", route=REPAIRS)
    await drained(dispatcher, clock)
    texts = {key: text for _, key, text, _ in notifier.arrived}
    [told] = [text for text in texts.values() if "never got through" in text]
    assert "1 earlier message never got through (alerts-critical 1), the oldest of 2025-10-09" in told


async def test_another_channel_says_what_a_dead_one_cannot(dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock) -> None:
    """Its webhook was deleted: nothing ever gets through there again."""
    await put(db, "page", "page 2")
    await put(db, "line", route=AUDIT)
    notifier.script = [REFUSED] * 1_000
    for _ in range(300):
        await dispatcher.drain()
        clock.advance(290_000)
    notifier.script = []
    await put(db, "repaired", "repaired 2", route=REPAIRS)
    await drained(dispatcher, clock)
    texts = {key: text for _, key, text, _ in notifier.arrived}
    assert "3 earlier messages never got through (alerts-critical 2, audit-log 1)" in texts["repaired"]
    assert "never got through" not in texts["repaired 2"]


async def test_mail_goes_beside_the_channel_and_only_what_is_missing_is_repeated(
    dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock
) -> None:
    notifier.mail_on = True
    notifier.mail_script = [Delivery(False, reason="mail down")] * 2
    await put(db, "a", "b")
    await drained(dispatcher, clock)
    assert sorted(notifier.keys) == ["a", "b"]
    assert sorted(notifier.mailed) == ["a", "b"]
    notifier.script = [REFUSED] * 2
    await put(db, "c")
    await drained(dispatcher, clock)
    assert notifier.keys.count("c") == notifier.mailed.count("c") == 1


async def test_a_burst_is_one_message(dispatcher: Dispatcher, notifier: FakeNotifier, db: Database) -> None:
    await put(db, *(f"k{n:02}" for n in range(30)))
    await dispatcher.drain()
    [(_, key, text, ping)] = notifier.arrived
    assert key == "fold:k00"
    assert ping
    assert "30 × host down" in text
    assert "what of k09" in text
    assert "what of k10" not in text
    assert "and 20 more" in text


async def test_audit_lines_come_batched_and_whole(dispatcher: Dispatcher, notifier: FakeNotifier, db: Database) -> None:
    await put(db, *(f"{n:03}{'x' * 90}" for n in range(60)), route=AUDIT, kind=EventKind.CONTROLLER_ACTION)
    await dispatcher.drain()
    assert 3 <= len(notifier.arrived) <= 6
    texts = "\n".join(text for _, _, text, _ in notifier.arrived)
    assert all(f"what of {n:03}x" in texts for n in range(60))
    assert all(len(text) + len(key) + 8 <= 2_000 for _, key, text, _ in notifier.arrived)


async def test_one_that_cannot_be_rendered_is_no_obstacle(
    dispatcher: Dispatcher, notifier: FakeNotifier, db: Database, clock: Clock, monkeypatch: Any
) -> None:
    render = message.render

    def fragile(event: Event, **options: Any) -> str:
        if event.key == "poison":
            raise ValueError("cannot")
        return render(event, **options)

    monkeypatch.setattr(message, "render", fragile)
    await put(db, "poison", "good")
    with structlog.testing.capture_logs():
        await dispatcher.drain()
    assert notifier.keys == ["good"]


async def test_the_loops_outlive_the_database(db: Database, notifier: FakeNotifier, settings: Settings, monkeypatch: Any) -> None:
    """The file is there again after a while: alerts and submissions go on, and the loops end when they are told to."""
    broken = True
    claim = outbox.claim

    async def sometimes(*args: Any, **options: Any) -> Any:
        if broken:
            raise Unreachable("database")
        return await claim(*args, **options)

    class NoEngine:
        async def submit(self, *_: Any) -> str:
            raise AssertionError

    monkeypatch.setattr(outbox, "claim", sometimes)
    await put(db, "k")
    stop = asyncio.Event()
    with structlog.testing.capture_logs() as logs:
        running = asyncio.create_task(dispatch.run(db, notifier, NoEngine(), settings, stop))  # type: ignore[arg-type]  # never asked
        await until(lambda: sum(entry.get("loop") == "outbox" for entry in logs) >= 2)
        broken = False
        await until(lambda: bool(notifier.keys))
        stop.set()
        async with asyncio.timeout(20):
            await running
    assert notifier.keys == ["k"]


async def test_doctor_tells_of_a_webhook_that_leads_nowhere_until_it_is_mended(db: Database, settings: Settings, clock: Clock) -> None:
    """Six webhooks may be configured and nobody be told anything."""
    answers = {"gone": httpx.Response(404, json={"code": 10015}), "good": httpx.Response(204)}
    transport = httpx.MockTransport(lambda request: answers[request.url.path.rpartition("/")[2]])
    await put(db, "a", "b")
    await put(db, "c", route=AUDIT)
    assert await doctor.channels(db) == []  # not tried yet

    async def deliver(token: str) -> None:
        notify = settings.notify.model_copy(update={"critical": SecretStr(f"1/{token}"), "audit": SecretStr("2/good")})
        notifier = DiscordNotifier(notify, transport=transport)
        await Dispatcher(db, notifier, settings.model_copy(update={"notify": notify}), "d1", clock=lambda: clock.now / 1000).drain()

    await deliver("gone")
    (check,) = await doctor.channels(db)
    assert check.ok is False and check.part == "channel alerts-critical"
    assert "404" in check.says and "create a webhook" in check.says and "ZLH_NOTIFY__CRITICAL" in check.remedy
    clock.advance(3_600_000)
    await deliver("good")
    assert await doctor.channels(db) == []
