"""The day in one message: fleet health, repairs, backups, queues, open breakers, pending reviews. Called by the ``digest`` flow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from flows.decide import routing
from flows.decide.calendar import Calendar
from flows.domain.event import Event, EventKind
from flows.domain.finding import Outcome, Policy
from flows.domain.readiness import may_publish
from flows.domain.server import Desired, Server, ServerState
from flows.domain.snapshot import Fleet
from flows.state import fleet, outbox, reviews
from flows.state.database import Database, Tx
from flows.state.outbox import OutboxStats

DAY_MS = 86_400_000
#: Longest list of names in a line.
NAMES = 8


async def send(database: Database, calendar: Calendar, policy: Policy | None = None) -> Event:
    """Writes today's digest to the outbox; a second call on the same (local) day changes nothing. Returns it."""
    async with database.read() as tx:
        event = await build(tx, calendar, policy or Policy())
        route = routing.route(event, calendar, tx.now)
    async with database.write() as tx:
        await outbox.put(tx, event, route)
    return event


async def build(tx: Tx, calendar: Calendar, policy: Policy) -> Event:
    """The digest of the moment. Its key is the operator's local date: one a day, whoever asks how often."""
    known = await fleet.load(tx, repairs_ms=DAY_MS)
    waiting = await outbox.stats(tx)
    pending = await reviews.pending(tx)
    day = calendar.day(tx.now)
    lines = [
        _fleet(known, tx.now),
        _findings(known),
        _repairs(known, tx.now),
        _backups(known, policy, tx.now),
        _queues(known, waiting),
        f"breakers: {_names(_open_breakers(known, policy, tx.now))} open",
        f"reviews: {len(pending)} pending" if pending else "reviews: none pending",
    ]
    if known.brakes:
        lines.append(f"paused: {_names([b.scope.value if not b.target else _name(known, b.target) for b in known.brakes])}")
    quiet = not known.episodes and not pending and not waiting.dead
    return Event(
        EventKind.DAILY_DIGEST,
        key=f"digest/{day}",
        what=f"daily digest {day}" + (": all is well" if quiet else ""),
        command="zlh status",
        facts={"lines": lines},
    )


def _fleet(known: Fleet, now: int) -> str:
    states = Counter(server.state for server in known.servers.values())
    wanted = [s for s in known.servers.values() if s.state is ServerState.ACTIVE and s.desired is Desired.RUNNING]
    ready = sum(may_publish(known.observations.get(s.id), now) for s in wanted)
    by_state = ", ".join(f"{states[state]} {state.value}" for state in ServerState if states[state])
    return f"fleet: {len(known.servers)} servers ({by_state or 'none'}); {ready} of {len(wanted)} that should run are ready"


def _findings(known: Fleet) -> str:
    if not known.episodes:
        return "findings: none open"
    checks = Counter(episode.check.value for episode in known.episodes.values())
    told = sum(episode.escalated_at is not None for episode in known.episodes.values())
    return f"findings: {len(known.episodes)} open ({_counted(checks)}); {told} of them need a person"


def _repairs(known: Fleet, now: int) -> str:
    day = [row for row in known.repairs if row.intent_at > now - DAY_MS]
    if not day:
        return "repairs: none in 24 h"
    outcomes = Counter("unfinished" if row.outcome is None else row.outcome.value for row in day)
    bad = Counter(row.check.value for row in day if row.outcome in (Outcome.FAILED, Outcome.UNVERIFIED))
    return f"repairs: {len(day)} in 24 h ({_counted(outcomes)})" + (f"; failed: {_counted(bad)}" if bad else "")


def _backups(known: Fleet, policy: Policy, now: int) -> str:
    """As the check judges it: an interval counts from the later of the last verified backup and activation."""
    if not policy.backup_interval_ms:
        return "backups: not watched"
    owed = [(s, i) for s in known.servers.values() if s.activated_at and (i := policy.backup_interval_ms.get(s.backup_policy)) is not None]
    late = [s for s, interval in owed if now - max(_verified(known, s), s.activated_at or 0) > interval]
    return f"backups: {len(owed) - len(late)} fresh, {len(late)} late" + (f" ({_names([s.name for s in late])})" if late else "")


def _verified(known: Fleet, server: Server) -> int:
    fact = known.backups.get(server.id)
    return 0 if fact is None else fact.verified_at


def _queues(known: Fleet, waiting: OutboxStats) -> str:
    depths = ", ".join(f"{q.queue} {q.waiting}" for q in known.queues)
    return f"queues: {depths}; outbox {waiting.waiting}" + (f", {waiting.dead} never got through" if waiting.dead else "")


def _open_breakers(known: Fleet, policy: Policy, now: int) -> list[str]:
    counted = Counter(r.server_id or r.subject for r in known.repairs if r.counted and r.intent_at > now - policy.breaker_window_ms)
    return sorted(_name(known, subject) for subject, attempts in counted.items() if attempts >= policy.breaker_attempts)


def _name(known: Fleet, subject: str) -> str:
    server = known.servers.get(subject)
    return subject if server is None else server.name


def _names(names: Sequence[str]) -> str:
    """``none``, or the first names and how many more."""
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more if names else "none"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
