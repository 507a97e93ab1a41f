"""Who watches the watcher: alerts when no sweep finishes, when the outbox stands still, or when its critical channel alone does.

``zlh watchdog`` calls :func:`check` once (a systemd timer outside the engine) or again and again (``zlh up``). It posts directly through
the notifier, past the outbox, and works without the database: what it announced, and what it last knew, is in a local file.
``reconcile`` calls :func:`deadman` for the outside world's own watchdog.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from flows.clients import heartbeat
from flows.decide import message as text
from flows.decide import routing
from flows.decide.calendar import Calendar
from flows.domain.event import Channel, Event, EventKind
from flows.domain.ports import Delivery, Notifier
from flows.errors import AutomationError, Temporary
from flows.settings import DeadmanSettings, Settings
from flows.state import outbox, sweeps
from flows.state.database import Database
from flows.state.sweeps import SweepOutcome

log = structlog.get_logger(__name__)

DAY_MS = 86_400_000
#: Looks further apart than this (or than the patience) mean that no watchdog ran in between.
ABSENT_MS = 180_000
#: Exit statuses of ``zlh watchdog``: all is well · a problem stands (announced or not) · the database did not answer.
WELL, PROBLEM, BLIND = 0, 1, 3
NO_SWEEP, OUTBOX, CRITICAL, DATABASE = "no_sweep", "outbox", "critical", "database"


@dataclass(frozen=True, slots=True)
class Problem:
    """One condition. ``since`` and ``announced_at`` in ms by this machine's clock; ``announced_at`` None: nobody was reached yet.
    ``told`` counts the announcements; it is part of the key, so that one with a lost answer repeats under its own."""

    name: str
    since: int
    what: str
    command: str
    announced_at: int | None = None
    told: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """The local file. ``watching_since``: first look after a time in which nobody looked. ``looked_at``: the last look;
    ``database_at``: the last at which the database answered."""

    watching_since: int
    looked_at: int
    database_at: int
    problems: Mapping[str, Problem] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found. ``int(report)`` is the exit status of ``zlh watchdog``."""

    problems: tuple[Problem, ...]
    over: tuple[Problem, ...]
    blind: bool
    undelivered: int

    def __int__(self) -> int:
        return BLIND if self.blind else PROBLEM if self.problems else WELL


@dataclass(frozen=True, slots=True)
class _Look:
    """What the database says, in ms of silence by its own clock; None: nothing ever finished, or nothing is waiting."""

    sweep_ms: int | None
    waiting_ms: int | None
    delivered_ms: int | None
    waiting: int
    critical_ms: int | None


async def check(database: Database, notifier: Notifier, settings: Settings, *, clock: Callable[[], float] = time.time) -> Report:
    """One look. Announces what is new, what still lasts after a day, and what is over. Never raises for a peer that does not answer.

    A problem counts after ``watchdog.intervals`` sweep intervals: without a finished sweep (superseded and failed ones did not finish,
    paused ones did), without a delivery while messages wait, with an alert that the critical channel does not get while others are delivered,
    or without an answer from the database. After a time in which no watchdog
    ran (a reboot), it waits that long before it judges.
    """
    now = int(clock() * 1000)
    patience = int(settings.watchdog.intervals * settings.timing.sweep_s * 1000)
    path = settings.watchdog.state_file
    memory = _wake(await asyncio.to_thread(_read, path), now, patience)
    look = await _look(database, settings.database.busy_timeout_s)
    if look is not None:
        memory = replace(memory, database_at=now)
    standing = _judge(look, memory, now, patience)
    problems: dict[str, Problem] = {}
    undelivered = 0
    for name, found in standing.items():
        known = memory.problems.get(name)
        problem = found if known is None else replace(known, what=found.what)
        if problem.announced_at is None or now - problem.announced_at >= settings.watchdog.repeat_s * 1000:
            if await _announce(notifier, settings, problem, now):
                problem = replace(problem, announced_at=now, told=problem.told + 1)
            else:
                undelivered += 1
        problems[name] = problem
    over = []
    for name, known in memory.problems.items():
        if name in problems:
            continue
        if known.announced_at is not None and not await _over(notifier, settings, known, now):
            # Still to be told. Trouble that comes back before that is the same trouble.
            undelivered += 1
            problems[name] = known
        else:
            over.append(known)
    await asyncio.to_thread(_write, path, replace(memory, looked_at=now, problems=problems))
    return Report(tuple(problems[name] for name in standing), tuple(over), look is None, undelivered)


async def deadman(settings: DeadmanSettings, outcome: str) -> bool:
    """Tells the outside world that a sweep found all well, where a URL is set. A failure is logged: our alerts do not hang on it."""
    if not settings.url or outcome != SweepOutcome.CLEAN:
        return False
    try:
        await heartbeat.beat(settings.url)
    except AutomationError as error:
        log.warning("heartbeat failed", error=str(error))
        return False
    return True


def _wake(memory: Memory | None, now: int, patience: int) -> Memory:
    if memory is None or not 0 <= now - memory.looked_at <= max(patience, ABSENT_MS):
        return Memory(now, now, now, {} if memory is None else memory.problems)
    return memory


def _judge(look: _Look | None, memory: Memory, now: int, patience: int) -> dict[str, Problem]:
    """What is wrong. Where the database does not answer, its conditions stay as they were: unknown is neither better nor worse."""
    watched = now - memory.watching_since
    if look is None:
        kept = {name: problem for name, problem in memory.problems.items() if name != DATABASE}
        silent = now - memory.database_at
        if silent >= patience or DATABASE in memory.problems:
            what = f"the database has not answered for {_span(silent)}: nothing is watched, repaired or delivered"
            kept[DATABASE] = Problem(DATABASE, memory.database_at, what, "zlh doctor")
        return kept
    found: dict[str, Problem] = {}
    silent = watched if look.sweep_ms is None else min(watched, look.sweep_ms)
    if silent > patience:
        last = "none ever did" if look.sweep_ms is None else f"the last one did {_span(look.sweep_ms)} ago"
        found[NO_SWEEP] = Problem(NO_SWEEP, now - silent, f"no sweep finishes: {last}; nothing is watched or repaired", "zlh status")
    if look.waiting_ms is not None:
        still = min(look.waiting_ms, watched if look.delivered_ms is None else look.delivered_ms)
        if min(still, watched) > patience:
            what = f"alerts are not delivered: {look.waiting} wait, the oldest for {_span(look.waiting_ms)}"
            found[OUTBOX] = Problem(OUTBOX, now - still, what, "zlh dispatch")
    if look.critical_ms is not None and OUTBOX not in found and min(look.critical_ms, watched) > patience:
        # Whatever the other channels get: this one wakes people.
        what = f"{Channel.CRITICAL.value} is not served: the oldest alert waits for {_span(look.critical_ms)} while others are delivered"
        found[CRITICAL] = Problem(CRITICAL, now - min(look.critical_ms, watched), what, "zlh doctor")
    return found


async def _look(database: Database, timeout_s: float) -> _Look | None:
    """None: the database did not answer."""
    try:
        async with asyncio.timeout(timeout_s + 1), database.read() as tx:
            last = await sweeps.last_finished(tx)
            stats = await outbox.stats(tx)
            return _Look(
                None if last is None or last.finished_at is None else max(tx.now - last.finished_at, 0),
                None if stats.due_since is None else tx.now - stats.due_since,
                None if stats.delivered_at is None else tx.now - stats.delivered_at,
                stats.waiting,
                None if stats.critical_since is None else tx.now - stats.critical_since,
            )
    except (Temporary, TimeoutError) as error:
        log.warning("the database does not answer", error=str(error))
        return None


async def _announce(notifier: Notifier, settings: Settings, problem: Problem, now: int) -> bool:
    again = problem.told > 0
    event = Event(
        EventKind.NO_SWEEP,
        key=f"watchdog/{problem.name}/{problem.since}/{problem.told}",
        what=problem.what,
        where="control plane",
        done=f"noticed by the watchdog, since {_time(problem.since)}" + (", not the first time" if again else ""),
        next="the watchdog reminds daily and says when it is over",
        command=problem.command,
    )
    return await _send(notifier, settings, event, now)


async def _over(notifier: Notifier, settings: Settings, problem: Problem, now: int) -> bool:
    event = Event(
        EventKind.EPISODE_OVER,
        key=f"watchdog/{problem.name}/{problem.since}/over",
        what=f"over: {problem.what}",
        where="control plane",
        done=f"it lasted from {_time(problem.since)} to {_time(now)}",
        over_of=EventKind.NO_SWEEP,
    )
    return await _send(notifier, settings, event, now)


async def _send(notifier: Notifier, settings: Settings, event: Event, now: int) -> bool:
    """Whether somebody got it: the channel, or the mailbox where Discord is what fails, or another channel where this one is."""
    route = routing.route(event, Calendar(), now)
    body = text.render(event, limit=text.LIMIT // 2)
    reached = await _try(notifier.send(route.channel.value, body, ping=route.ping, key=event.key), settings, event.key)
    reached |= await _try(notifier.mail(route.severity.value, text.clip(event.what, 150), body, key=event.key), settings, event.key)
    return reached or await _try(notifier.send(Channel.HEALTH.value, body, ping=route.ping, key=event.key), settings, event.key)


async def _try(sending: Awaitable[Delivery | None], settings: Settings, key: str) -> bool:
    """Whether it arrived; an answer that is lost is none."""
    try:
        async with asyncio.timeout(settings.notify.timeout_s + 1):
            delivery = await sending
    except (AutomationError, TimeoutError) as error:
        log.error("not delivered", key=key, why=str(error) or "no answer in time")
        return False
    if delivery is not None and not delivery.delivered:
        log.error("not delivered", key=key, why=delivery.reason, status=delivery.status)
    return delivery is not None and delivery.delivered


def _read(path: Path) -> Memory | None:
    """None where there is no file, or none that can be understood: then it is as on the first day."""
    try:
        data = json.loads(path.read_text())
        problems = {name: Problem(**problem) for name, problem in data.pop("problems").items()}
        return Memory(problems=problems, **data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("the watchdog's file is unreadable, starting anew", path=str(path), error=str(error))
        return None


def _write(path: Path, memory: Memory) -> None:
    """Whole or not at all, whenever the machine stops. A disk that refuses must not silence the watchdog."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            json.dump(asdict(memory), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        log.error("the watchdog cannot remember what it announced and may repeat itself", path=str(path), error=str(error))


def _span(ms: int) -> str:
    minutes, hours, days = ms // 60_000, ms // 3_600_000, ms // DAY_MS
    return f"{days} d" if days > 1 else f"{hours} h" if hours > 1 else f"{minutes} min" if minutes > 1 else f"{ms // 1000} s"


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
