"""The outbox as a table: written once, claimed by one, folded in bursts, dead after a day and told of."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from flows.domain.event import Channel, Event, EventKind, Route, Severity
from flows.state import outbox
from flows.state import tables as t
from flows.state.database import Database, Tx

PAGE = Route(Channel.CRITICAL, True, Severity.CRITICAL)
QUIET = Route(Channel.REPAIRS, False, Severity.INFO)
AUDIT = Route(Channel.AUDIT, False, Severity.INFO)
TTL = 30_000
DAY = 86_400_000


def event(key: str, kind: EventKind = EventKind.EPISODE_ESCALATED, **fields: Any) -> Event:
    return Event(kind, key, what=f"what of {key}", command=f"zlh explain {key}", **fields)


def line(e: Event) -> str:
    return f"{e.what} · {e.where}"


def lines_of(e: Event) -> list[str]:
    lines = e.facts["lines"]
    assert isinstance(lines, list)
    return lines


async def rows(tx: Tx) -> list[Any]:
    return list((await tx.execute(select(t.outbox).order_by(t.outbox.c.created_at, t.outbox.c.id))).all())


async def put(db: Database, *keys: str, route: Route = PAGE, kind: EventKind = EventKind.EPISODE_ESCALATED) -> None:
    async with db.write() as tx:
        await outbox.put_all(tx, [(event(key, kind), route) for key in keys])


async def claim(db: Database, owner: str = "d1", limit: int = 50, **options: Any) -> list[outbox.Message]:
    async with db.write() as tx:
        return await outbox.claim(tx, owner, tx.now + TTL, limit, **options)


async def fold(db: Database, over: int = 5, **options: Any) -> int:
    async with db.write() as tx:
        return await outbox.fold(tx, over=over, line=line, **options)


async def test_an_event_comes_back_as_it_was_put(timed: Database, clock: Any) -> None:
    whole = Event(EventKind.EPISODE_OVER, "k", "w", "where", "done", "next", "cmd", 2, True, EventKind.HOST_DOWN, {"n": 1, "path": {"a": [1]}})
    async with timed.write() as tx:
        await outbox.put(tx, whole, PAGE)
    [message] = await claim(timed)
    assert message.event == whole
    assert (message.channel, message.ping, message.severity, message.tries, message.doubted) == (Channel.CRITICAL, True, Severity.CRITICAL, 1, False)
    assert message.created_at == clock.now


async def test_facts_that_are_no_json_are_stored_as_text(timed: Database) -> None:
    async with timed.write() as tx:
        await outbox.put(tx, event("k", facts={"when": object()}), PAGE)
    assert len(await claim(timed)) == 1


async def test_the_same_key_twice_changes_nothing(timed: Database) -> None:
    async with timed.write() as tx:
        await outbox.put(tx, event("k"), PAGE)
        await outbox.put(tx, replace(event("k"), what="another"), QUIET)
    [message] = await claim(timed)
    assert message.event.what == "what of k"
    async with timed.write() as tx:
        await outbox.sent(tx, message.id)
        await outbox.put(tx, event("k"), PAGE)
    assert await claim(timed) == []


async def test_long_keys_fit_and_stay_apart(timed: Database) -> None:
    await put(timed, "x" * 300 + "1", "x" * 300 + "2", "x" * 300 + "1")
    messages = await claim(timed)
    assert len({m.key for m in messages}) == 2
    assert all(len(m.key) <= 200 for m in messages)


async def test_nothing_is_written_when_its_cause_is_not(timed: Database) -> None:
    with pytest.raises(RuntimeError):
        async with timed.write() as tx:
            await outbox.put(tx, event("k"), PAGE)
            raise RuntimeError
    assert await claim(timed) == []


async def test_held_until_quiet_hours_end(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        await outbox.put(tx, event("k"), replace(QUIET, not_before=clock.now + 1_000))
    assert await claim(timed) == []
    async with timed.read() as tx:
        stats = await outbox.stats(tx)
    assert (stats.waiting, stats.held, stats.due_since) == (1, 1, None)
    clock.advance(1_000)
    [message] = await claim(timed)
    assert message.created_at == clock.now  # its 24 hours begin only now


async def test_messages_held_through_a_night_are_one_in_the_morning(timed: Database, clock: Any) -> None:
    morning = clock.now + 8 * 3_600_000
    for number in range(6):
        async with timed.write() as tx:
            await outbox.put(tx, event(f"k{number}", EventKind.REPAIR_SUCCEEDED), replace(QUIET, not_before=morning))
        clock.advance(3_600_000)
    clock.advance(3 * 3_600_000)
    assert await fold(timed) == 6
    assert len(await claim(timed)) == 1


async def test_two_dispatchers_never_get_the_same_message(open_db: Any, clock: Any) -> None:
    databases = [open_db(clock=clock) for _ in range(4)]
    await put(databases[0], *(f"k{n}" for n in range(40)))
    found = await asyncio.gather(*(claim(databases[n], f"d{n}", 15) for n in range(4)))
    while last := await claim(databases[0], "d0", 15):  # MariaDB locks what it scans, too: such rows wait for the next round
        found.append(last)
    ids = [message.id for messages in found for message in messages]
    assert len(ids) == len(set(ids)) == 40


async def test_a_claim_that_ran_out_is_free_and_in_doubt(timed: Database, clock: Any) -> None:
    await put(timed, "k")
    await claim(timed)
    clock.advance(TTL)
    assert await claim(timed, "d2") == []
    clock.advance(1)
    [message] = await claim(timed, "d2")
    assert message.doubted
    assert message.tries == 2


async def test_oldest_first_and_held_channels_left_alone(timed: Database, clock: Any) -> None:
    for key in ("a", "b", "c"):
        await put(timed, key)
        clock.advance(1)
    await put(timed, "r", route=QUIET)
    assert [m.key for m in await claim(timed, limit=2)] == ["a", "b"]
    assert [m.key for m in await claim(timed, without={Channel.CRITICAL})] == ["r"]


async def test_failing_waits_and_dies_after_a_day_and_the_next_one_tells(timed: Database, clock: Any) -> None:
    await put(timed, "k")
    died = False
    tries = 0
    while not died:
        [message] = await claim(timed)
        tries += 1
        async with timed.write() as tx:
            died = await outbox.failed(tx, message, "d1", retry_at=tx.now + 3_600_000, give_up_ms=DAY, error="status 500")
        assert not await claim(timed)
        clock.advance(3_600_000)
    assert tries == 25  # at 0 h, 1 h, … 24 h
    await put(timed, "next")
    [after] = await claim(timed)
    async with timed.write() as tx:
        notice = await outbox.dead_notice(tx)
        assert notice == outbox.DeadNotice((message.id,), message.created_at, {Channel.CRITICAL: 1})
        stats = await outbox.stats(tx)
        assert (stats.dead, stats.critical_since) == (1, message.created_at)
        await outbox.sent(tx, after.id, reported=notice.ids)
        assert await outbox.dead_notice(tx) is None
        assert (await outbox.stats(tx)).critical_since is None


async def test_a_notice_names_every_channel(timed: Database) -> None:
    await put(timed, "a", "b")
    await put(timed, "c", route=AUDIT)
    for message in await claim(timed):
        async with timed.write() as tx:
            await outbox.failed(tx, message, "d1", retry_at=tx.now, give_up_ms=0, error="refused")
    async with timed.read() as tx:
        notice = await outbox.dead_notice(tx)
    assert notice is not None
    assert dict(notice.channels) == {Channel.CRITICAL: 2, Channel.AUDIT: 1}
    assert len(notice.ids) == 3


async def test_since_when_the_critical_channel_waits(timed: Database, clock: Any) -> None:
    """What its channel has, what is held, and what belongs to another channel, is no wait."""
    await put(timed, "audit", route=AUDIT)
    await put(timed, "held", route=replace(PAGE, not_before=clock.now + DAY))
    await put(timed, "posted")
    clock.advance(1_000)
    [_, posted] = await claim(timed)
    async with timed.write() as tx:
        await outbox.failed(tx, posted, "d1", retry_at=tx.now, give_up_ms=DAY, error="mail down", posted=True)
        assert (await outbox.stats(tx)).critical_since is None
    await put(timed, "k")
    put_at = clock.now
    clock.advance(1_000)
    async with timed.read() as tx:
        assert (await outbox.stats(tx)).critical_since == put_at


async def test_never_tried_is_never_dead(timed: Database, clock: Any) -> None:
    await put(timed, "k")
    clock.advance(10 * DAY)  # no dispatcher ran
    assert [m.key for m in await claim(timed)] == ["k"]


async def test_an_end_is_an_end(timed: Database, clock: Any) -> None:
    await put(timed, "k")
    [message] = await claim(timed)
    clock.advance(TTL + 1)
    [again] = await claim(timed, "d2")
    async with timed.write() as tx:
        await outbox.sent(tx, message.id)  # the slow first one got through after all
        assert not await outbox.failed(tx, again, "d2", retry_at=tx.now, give_up_ms=0, error="refused")
    async with timed.read() as tx:
        assert [r.state for r in await rows(tx)] == [outbox.SENT]


async def test_a_stranger_cannot_fail_a_message(timed: Database, clock: Any) -> None:
    await put(timed, "k")
    [message] = await claim(timed)
    clock.advance(TTL + 1)
    await claim(timed, "d2")
    async with timed.write() as tx:
        await outbox.failed(tx, message, "d1", retry_at=tx.now + DAY, give_up_ms=DAY, error="refused")
        [row] = await rows(tx)
    assert row.claimed_by == "d2"


async def test_half_delivered_keeps_its_half(timed: Database) -> None:
    await put(timed, "k")
    [message] = await claim(timed)
    async with timed.write() as tx:
        await outbox.failed(tx, message, "d1", retry_at=tx.now, give_up_ms=DAY, error="mail down", posted=True)
    [message] = await claim(timed)
    assert message.posted
    assert not message.mailed
    async with timed.write() as tx:
        assert not await outbox.failed(tx, message, "d1", retry_at=tx.now, give_up_ms=0, error="mail down")
        assert [r.state for r in await rows(tx)] == [outbox.SENT]  # its channel has it


@pytest.mark.parametrize(("number", "messages"), [(5, 5), (6, 1), (40, 1)])
async def test_more_than_five_in_ten_seconds_become_one(timed: Database, clock: Any, number: int, messages: int) -> None:
    for n in range(number):
        await put(timed, f"k{n:02}")
        clock.advance(200)
    await fold(timed)
    found = await claim(timed)
    assert len(found) == messages
    if messages == 1:
        told = found[0].event
        assert told.what == f"{number} × episode escalated"
        lines = lines_of(told)
        assert lines[0].startswith("what of k00")
        assert len(lines) == min(number, 10) + (number > 10)
        assert lines[-1] == f"and {number - 10} more" if number > 10 else lines[-1].startswith("what of k05")
        assert found[0].ping
        assert found[0].severity is Severity.CRITICAL


async def test_what_was_mailed_is_not_folded(timed: Database) -> None:
    """Its mail is out; the message of a fold would be mailed once more."""
    await put(timed, *(f"k{n:02}" for n in range(20)))
    for message in await claim(timed, limit=7):
        async with timed.write() as tx:
            await outbox.failed(tx, message, "d1", retry_at=tx.now, give_up_ms=DAY, error="status 500", mailed=True)
    await fold(timed)
    found = await claim(timed)
    assert [m.key for m in found if m.mailed] == [f"k{n:02}" for n in range(7)]
    assert [m.event.what for m in found if not m.mailed] == ["13 × episode escalated"]


async def test_slow_ones_other_kinds_and_other_channels_are_not_folded(timed: Database, clock: Any) -> None:
    for n in range(8):
        await put(timed, f"slow{n}", kind=EventKind.HOST_DOWN)
        clock.advance(2_001)
    await put(timed, *(f"a{n}" for n in range(4)))
    await put(timed, *(f"b{n}" for n in range(4)), kind=EventKind.BREAKER_OPENED)
    await put(timed, *(f"c{n}" for n in range(4)), route=QUIET)
    assert await fold(timed) == 0


async def test_a_message_that_may_have_arrived_is_never_folded(timed: Database, clock: Any) -> None:
    await put(timed, *(f"k{n}" for n in range(7)))
    doubted, refused, *_ = await claim(timed, limit=2)
    async with timed.write() as tx:
        await outbox.failed(tx, doubted, "d1", retry_at=tx.now, give_up_ms=DAY, error="lost", in_doubt=True)
        await outbox.failed(tx, refused, "d1", retry_at=tx.now, give_up_ms=DAY, error="refused")
    assert await fold(timed) == 6
    # A later refusal says nothing about the answer that was lost before.
    [again, _] = sorted(await claim(timed), key=lambda m: m.id != doubted.id)
    assert again.doubted
    async with timed.write() as tx:
        await outbox.failed(tx, again, "d1", retry_at=tx.now, give_up_ms=DAY, error="refused")
    await put(timed, *(f"z{n}" for n in range(7)))
    await fold(timed)
    assert doubted.id in {m.id for m in await claim(timed, "d2")}


async def test_released_messages_are_as_before(timed: Database, clock: Any) -> None:
    await put(timed, *(f"k{n}" for n in range(6)))
    messages = await claim(timed)
    async with timed.write() as tx:
        await outbox.release(tx, messages, "d1", tx.now + 5)
    assert await claim(timed) == []
    clock.advance(5)
    assert await fold(timed) == 6
    [message] = await claim(timed)
    assert message.tries == 1


async def test_audit_lines_are_batched_to_the_size_of_a_message(timed: Database) -> None:
    await put(timed, *(f"{n:03}" + "x" * 97 for n in range(40)), route=AUDIT, kind=EventKind.CONTROLLER_ACTION)
    assert await fold(timed, room=1_000) == 40
    messages = await claim(timed)
    assert len(messages) == 5
    batches = [lines_of(m.event) for m in messages]
    assert sum(len(batch) for batch in batches) == 40
    assert all(sum(len(x) + 1 for x in batch) <= 1_000 for batch in batches)


async def test_a_folded_message_is_not_folded_again(timed: Database) -> None:
    for burst in range(7):
        await put(timed, *(f"b{burst}-{n}" for n in range(6)))
        await fold(timed)
    assert len(await claim(timed)) == 7


async def test_standing_still_shows(timed: Database, clock: Any) -> None:
    await put(timed, "k", "l")
    put_at = clock.now
    clock.advance(60_000)
    [message] = await claim(timed, limit=1)
    async with timed.write() as tx:
        await outbox.sent(tx, message.id)
        stats = await outbox.stats(tx)
    assert stats == outbox.OutboxStats(waiting=1, held=0, dead=0, due_since=put_at, delivered_at=clock.now, critical_since=put_at)


async def test_pruning_keeps_what_waits_and_what_died_untold(timed: Database, clock: Any) -> None:
    await put(timed, "sent", "dead", "waiting")
    sent, dead, _ = await claim(timed)
    async with timed.write() as tx:
        await outbox.sent(tx, sent.id)
        await outbox.failed(tx, dead, "d1", retry_at=tx.now, give_up_ms=0, error="refused")
    clock.advance(DAY)
    async with timed.write() as tx:
        assert await outbox.prune(tx, tx.now) == 1
        assert {r.key for r in await rows(tx)} == {"dead", "waiting"}


async def test_ten_thousand_at_once(timed: Database) -> None:
    await put(timed, *(f"k{n}" for n in range(10_000)))
    assert await fold(timed) == 10_000
    assert len(await claim(timed)) == 1
