"""Messages waiting to be delivered, written in the transaction that causes them. At least once; a repeat only where an answer was lost.

``put`` is called by whoever causes an event; the rest by :mod:`flows.report.dispatch`, of which any number may run: a row is
claimed by compare-and-set for a while, and a claim that runs out is free again.

Columns that carry more than their name says:

``created_at``   when the message became due: a message held by quiet hours counts from their end, for its order, folding and 24 hours
``claimed_by``   stays after an ambiguous answer or a death in mid-send: such a row may have arrived, so it is never folded or batched
``sent_at``      the channel has it; the row still waits while its mail does not (``mailed_at``)
``folded_into``  of a folded row: the message that tells of it; of a dead row: the message that said so
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, and_, bindparam, case, delete, func, or_, select, update

from flows.domain.event import Channel, Event, EventKind, Route, Severity
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import new_id
from flows.state.upsert import upsert

WAITING, SENT, FOLDED, DEAD = "waiting", "sent", "folded", "dead"
#: Rows of one kind within this time are one burst, in milliseconds.
BURST_MS = 10_000
#: Lines that a folded burst names.
SUBJECTS = 10
_FOLD = "fold:"
_M = t.outbox.c
_AT = bindparam("at", type_=_M.not_before.type)
_RANK = (Severity.INFO.value, Severity.WARNING.value, Severity.CRITICAL.value)


@dataclass(frozen=True, slots=True)
class Message:
    """A claimed row. ``posted``: the channel has it already and only its mail is missing; ``mailed`` the other way round.
    ``doubted``: an earlier send got no answer, or died: it may have arrived."""

    id: str
    key: str
    channel: Channel
    ping: bool
    severity: Severity
    event: Event
    created_at: int
    tries: int
    posted: bool = False
    mailed: bool = False
    doubted: bool = False


@dataclass(frozen=True, slots=True)
class DeadNotice:
    """Messages that never got through, and that nobody was told of; ``channels``: how many of each."""

    ids: tuple[str, ...]
    oldest_at: int
    channels: Mapping[Channel, int]


@dataclass(frozen=True, slots=True)
class Trouble:
    """``messages`` that a channel did not take, and why the last one was not taken."""

    messages: int
    error: str


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """``due_since`` is the oldest due row's time, None when nothing is due; ``delivered_at`` the last delivery's. ``critical_since``: the
    oldest alert that the critical channel does not have, be it due or dead without anybody having been told."""

    waiting: int
    held: int
    dead: int
    due_since: int | None
    delivered_at: int | None
    critical_since: int | None = None


async def put(tx: Tx, event: Event, route: Route) -> None:
    """Writes the event in the caller's transaction. The same key a second time changes nothing."""
    await put_all(tx, [(event, route)])


async def put_all(tx: Tx, events: Iterable[tuple[Event, Route]]) -> None:
    """Writes any number in one statement."""
    await upsert(tx, t.outbox, [_row(tx, event, route) for event, route in events], key="key", update=())


def _row(tx: Tx, event: Event, route: Route) -> dict[str, Any]:
    due = max(tx.now, route.not_before or 0)
    return {
        "id": new_id(),
        "key": _key(event.key),
        "kind": event.kind.value,
        "channel": route.channel.value,
        "ping": route.ping,
        "severity": route.severity.value,
        "event": _dump(event),
        "state": WAITING,
        "created_at": due,
        "not_before": due,
        "tries": 0,
        "last_error": "",
    }


async def claim(tx: Tx, owner: str, until: int, limit: int, *, without: Collection[Channel] = ()) -> list[Message]:
    """Up to ``limit`` due messages, oldest first, owned by ``owner`` until ``until`` (ms). Two dispatchers never get the same one."""
    oldest = _oldest(limit, tuple(sorted(c.value for c in without)))
    before = {r.id: r.claimed_by for r in (await tx.execute(oldest, {"at": tx.now})).all()}
    if not before:
        return []
    ids = list(before)
    await tx.execute(_CLAIM, {"ids": ids, "at": tx.now, "claimed_by": owner, "claimed_until": until})
    mine = await tx.execute(_MINE, {"ids": ids, "owner": owner, "until": until})
    return [_message(r, doubted=before[r.id] is not None) for r in mine.all()]


@cache
def _oldest(limit: int, without: tuple[str, ...]) -> Select[Any]:
    """Due ones that nobody has. Rows that another dispatcher is just claiming are passed over: SQLite has one writer at a time anyway."""
    row = t.outbox.c
    due = select(row.id, row.claimed_by).where(row.state == WAITING, row.not_before <= _AT, _free(_AT))
    if without:
        due = due.where(row.channel.not_in(without))
    return due.order_by(row.created_at, row.id).limit(limit).with_for_update(skip_locked=True)


async def release(tx: Tx, messages: Sequence[Message], owner: str, retry_at: int) -> None:
    """Gives back messages that were claimed and never sent; those that were in doubt before stay so."""
    row = t.outbox.c
    for doubted in (False, True):
        ids = [m.id for m in messages if m.doubted is doubted]
        values = {"claimed_until": None, "not_before": retry_at, "tries": row.tries - 1} | ({} if doubted else {"claimed_by": None})
        if ids:
            await tx.execute(update(t.outbox).where(row.id.in_(ids), row.claimed_by == owner, row.state == WAITING).values(values))


async def sent(tx: Tx, id_: str, *, posted: bool = True, mailed: bool = False, reported: Sequence[str] = ()) -> None:
    """The message is where it belongs. True whoever owns the claim by now: what arrived has arrived.
    ``reported``: dead messages that it told of."""
    await tx.execute(_sent(posted, mailed), {"of": id_, "now": tx.now, "state": SENT, "claimed_until": None, "last_error": ""})
    await told(tx, id_, reported)


@cache
def _sent(posted: bool, mailed: bool) -> Update:
    """Notes which half got through, once."""
    now = bindparam("now", type_=_M.sent_at.type)
    done = ([_M.sent_at] if posted else []) + ([_M.mailed_at] if mailed else [])
    return update(t.outbox).where(_M.id == bindparam("of")).values({column: func.coalesce(column, now) for column in done})


async def told(tx: Tx, id_: str, reported: Sequence[str]) -> None:
    """Message ``id_`` got through and said that the ``reported`` ones never did."""
    if reported:
        row = t.outbox.c
        await tx.execute(update(t.outbox).where(row.id.in_(reported), row.state == DEAD).values(folded_into=id_))


async def failed(
    tx: Tx,
    message: Message,
    owner: str,
    *,
    retry_at: int,
    give_up_ms: int,
    error: str,
    in_doubt: bool = False,
    posted: bool = False,
    mailed: bool = False,
) -> bool:
    """Tried and not (wholly) delivered: again at ``retry_at``, or dead once ``give_up_ms`` have passed since it was due.

    ``in_doubt``: the answer was lost, so it may have arrived. ``posted``/``mailed``: this half did get through and is not repeated.
    Returns True if the message is dead now. Somebody else's claim, or an end, is left alone.
    """
    row = t.outbox.c
    over = tx.now - message.created_at >= give_up_ms
    state = WAITING if not over else SENT if posted or message.posted else DEAD
    values: dict[str, Any] = {"state": state, "claimed_until": None, "not_before": retry_at, "last_error": error[:255]}
    if not in_doubt and not message.doubted:
        values["claimed_by"] = None
    if posted:
        values["sent_at"] = func.coalesce(row.sent_at, tx.now)
    if mailed:
        values["mailed_at"] = func.coalesce(row.mailed_at, tx.now)
    done = await tx.execute(update(t.outbox).where(row.id == message.id, row.claimed_by == owner, row.state == WAITING).values(**values))
    return state == DEAD and bool(done.rowcount == 1)


async def dead_notice(tx: Tx) -> DeadNotice | None:
    """The dead messages of every channel that no delivered message told of yet, the oldest 1,000. A channel that works again may be long
    in coming, so any other may say it."""
    rows = (await tx.execute(_UNTOLD)).all()
    if not rows:
        return None
    return DeadNotice(tuple(r.id for r in rows), rows[0].created_at, Counter(Channel(r.channel) for r in rows))


async def fold(tx: Tx, *, over: int, line: Callable[[Event], str], room: int = 1_800, burst_ms: int = BURST_MS, named: int = SUBJECTS) -> int:
    """Makes one message of each burst (more than ``over`` due rows of one kind for one channel within ``burst_ms``), which names the first
    ``named`` subjects, and batches audit lines into messages of at most ``room`` characters. ``line`` renders one event. Returns how many
    rows were folded away."""
    row = t.outbox.c
    many = (await tx.execute(_crowds(over), {"at": tx.now})).all()
    folded = 0
    for channel, kind in many:
        query = select(t.outbox).where(_fresh(), row.channel == channel, row.kind == kind).order_by(row.created_at, row.id).with_for_update()
        messages = (await tx.execute(query, {"at": tx.now})).all()
        parts = _batches(messages, line, room) if channel == Channel.AUDIT.value else _bursts(messages, over, burst_ms)
        for part in parts:
            folded += await _fold(tx, part, line, whole=channel == Channel.AUDIT.value, subjects=named)
    return folded


def _fresh() -> ColumnElement[bool]:
    row = t.outbox.c
    whole = and_(row.sent_at.is_(None), row.mailed_at.is_(None))  # of a half that got through, only the other half is still to be sent
    return and_(row.state == WAITING, row.not_before <= _AT, row.claimed_by.is_(None), whole, row.key.not_like(_FOLD + "%"))


@cache
def _crowds(over: int) -> Select[Any]:
    """Channels and kinds of which so many wait that some may be one message."""
    row = t.outbox.c
    audit = row.channel == Channel.AUDIT.value
    groups = select(row.channel, row.kind).where(_fresh()).group_by(row.channel, row.kind)
    return groups.having(or_(func.count() > over, and_(audit, func.count() > 1)))


def _bursts(rows: Sequence[Any], over: int, burst_ms: int) -> list[Sequence[Any]]:
    bursts: list[Sequence[Any]] = []
    begin = 0
    while begin < len(rows):
        end = begin
        while end < len(rows) and rows[end].created_at - rows[begin].created_at <= burst_ms:
            end += 1
        if end - begin > over:
            bursts.append(rows[begin:end])
            begin = end
        else:
            begin += 1
    return bursts


def _batches(rows: Sequence[Any], line: Callable[[Event], str], room: int) -> list[Sequence[Any]]:
    batches: list[list[Any]] = []
    used = 0
    for row in rows:
        length = len(line(_load(row.event))) + 1
        if not batches or used + length > room:
            batches.append([])
            used = 0
        batches[-1].append(row)
        used += length
    return [batch for batch in batches if len(batch) > 1]


async def _fold(tx: Tx, rows: Sequence[Any], line: Callable[[Event], str], *, whole: bool, subjects: int) -> int:
    """Replaces ``rows`` by one message that tells of all of them, ``whole`` or by its first subjects."""
    first = _load(rows[0].event)
    events = [_load(row.event) for row in rows]
    named = events if whole else events[:subjects]
    lines = [line(event) for event in named]
    if len(named) < len(events):
        lines.append(f"and {len(events) - len(named)} more")
    commands = {event.command for event in events}
    event = replace(
        first,
        key=_key(f"{_FOLD}{rows[0].key}"),
        what=f"{len(events)} controller actions" if whole else f"{len(events)} × {_words(first.kind)}",
        where="",
        done="",
        next="" if whole else first.next if len({e.next for e in events}) == 1 else "each of them as far as automation may",
        command=commands.pop() if len(commands) == 1 else "" if whole else "zlh findings",
        level=max(e.level for e in events),
        failed=any(e.failed for e in events),
        facts={"count": len(events), "lines": lines},
    )
    new = {
        "id": new_id(),
        "key": event.key,
        "kind": rows[0].kind,
        "channel": rows[0].channel,
        "ping": any(row.ping for row in rows),
        "severity": max((row.severity for row in rows), key=_RANK.index),
        "event": _dump(event),
        "state": WAITING,
        "created_at": rows[0].created_at,
        "not_before": tx.now,
        "tries": 0,
        "last_error": "",
    }
    await upsert(tx, t.outbox, [new], key="key", update=())
    ids = [row.id for row in rows]
    for begin in range(0, len(ids), 1_000):
        await tx.execute(update(t.outbox).where(t.outbox.c.id.in_(ids[begin : begin + 1_000])).values(state=FOLDED, folded_into=new["id"]))
    return len(ids)


async def stats(tx: Tx) -> OutboxStats:
    """How the outbox fares, in one look."""
    row = t.outbox.c
    waiting = row.state == WAITING
    due = and_(waiting, or_(row.not_before <= tx.now, row.tries > 0))
    unread = and_(row.channel == Channel.CRITICAL.value, or_(and_(due, row.sent_at.is_(None)), and_(row.state == DEAD, row.folded_into.is_(None))))
    numbers = (
        func.sum(case((waiting, 1), else_=0)),
        func.sum(case((and_(waiting, row.not_before > tx.now, row.tries == 0), 1), else_=0)),
        func.sum(case((row.state == DEAD, 1), else_=0)),
        func.min(case((due, row.created_at), else_=None)),
        func.min(case((unread, row.created_at), else_=None)),
    )
    found = (await tx.execute(select(*numbers).where(row.state.in_([WAITING, DEAD])))).one()
    # By the index on (state, not_before), not over every message ever sent.
    latest = select(row.sent_at).where(row.state == SENT).order_by(row.not_before.desc()).limit(200).subquery()
    delivered = (await tx.execute(select(func.max(latest.c.sent_at)))).scalar_one()
    return OutboxStats(int(found[0] or 0), int(found[1] or 0), int(found[2] or 0), found[3], delivered, found[4])


async def troubles(tx: Tx) -> dict[Channel, Trouble]:
    """Channels whose messages do not get through: those that wait after a failed try, or are dead and nobody was told so yet."""
    row = t.outbox.c
    stuck = or_(row.state == WAITING, and_(row.state == DEAD, row.folded_into.is_(None)))
    query = select(row.channel, row.last_error).where(row.state.in_([WAITING, DEAD]), stuck, row.last_error != "").order_by(row.not_before.desc())
    found: dict[Channel, list[str]] = {}
    for each in await tx.execute(query.limit(10_000)):
        found.setdefault(Channel(each.channel), []).append(each.last_error)
    return {channel: Trouble(len(errors), errors[0]) for channel, errors in found.items()}


async def prune(tx: Tx, before: int) -> int:
    """Removes messages delivered or folded that were due before a time (ms). Dead ones stay until somebody was told of them."""
    row = t.outbox.c
    over = or_(row.state.in_([SENT, FOLDED]), and_(row.state == DEAD, row.folded_into.is_not(None)))
    return int((await tx.execute(delete(t.outbox).where(over, row.created_at < before))).rowcount)


def _free(now: Any) -> Any:
    return or_(_M.claimed_until.is_(None), _M.claimed_until < now)


# Built once: a dispatcher executes them for every message.
_AMONG = _M.id.in_(bindparam("ids", expanding=True))
_CLAIM = update(t.outbox).where(_AMONG, _M.state == WAITING, _free(_AT)).values(tries=_M.tries + 1)
_MINE = (
    select(t.outbox)
    .where(_AMONG, _M.claimed_by == bindparam("owner"), _M.claimed_until == bindparam("until"), _M.state == WAITING)
    .order_by(_M.created_at, _M.id)
)
_UNTOLD = select(_M.id, _M.channel, _M.created_at).where(_M.state == DEAD, _M.folded_into.is_(None)).order_by(_M.created_at).limit(1_000)


def _message(r: Any, *, doubted: bool) -> Message:
    return Message(
        id=r.id,
        key=r.key,
        channel=Channel(r.channel),
        ping=r.ping,
        severity=Severity(r.severity),
        event=_load(r.event),
        created_at=r.created_at,
        tries=r.tries,
        posted=r.sent_at is not None,
        mailed=r.mailed_at is not None,
        doubted=doubted,
    )


def _key(key: str) -> str:
    """A key that fits its column; a longer one keeps its begin and is told apart by a digest of the whole."""
    return key if len(key) <= 200 else f"{key[:167]}:{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _words(kind: EventKind) -> str:
    return kind.value.replace("_", " ")


def _dump(event: Event) -> dict[str, Any]:
    return {
        "kind": event.kind.value,
        "key": event.key,
        "what": event.what,
        "where": event.where,
        "done": event.done,
        "next": event.next,
        "command": event.command,
        "level": event.level,
        "failed": event.failed,
        "over_of": event.over_of.value if event.over_of else None,
        "facts": json.loads(json.dumps(dict(event.facts), default=str)),
    }


def _load(data: Mapping[str, Any]) -> Event:
    over_of = data["over_of"]
    return Event(**{**data, "kind": EventKind(data["kind"]), "over_of": None if over_of is None else EventKind(over_of)})
