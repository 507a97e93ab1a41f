"""Which events a plan causes, and how it reads in a log. Pure; the sweep writes the events to the outbox."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flows.decide.episodes import REPAIRING
from flows.domain.event import Event, EventKind
from flows.domain.finding import OWN_ROUTE, WITHDRAWALS, Check, EpisodeChange, Plan, Reason, Transition

#: Checks with a row of their own: event by severity, highest last.
_OWN: Mapping[Check, tuple[tuple[int, EventKind], ...]] = {
    Check.BACKUP_MISSED: ((1, EventKind.BACKUP_MISSED), (2, EventKind.BACKUP_MISSED_TWICE)),
    Check.SOURCE_UNKNOWN: ((1, EventKind.SOURCE_UNKNOWN), (3, EventKind.SOURCE_UNKNOWN_LONG)),
    Check.HOST_DOWN: ((1, EventKind.HOST_DOWN),),
    Check.SOURCE_DRIFT: ((1, EventKind.SOURCE_DRIFT),),
    Check.QUEUE_STALLED: ((1, EventKind.QUEUE_STALLED),),
    Check.LEASE_ABANDONED: ((1, EventKind.LEASE_ABANDONED),),
}
_OF: Mapping[Transition, EventKind] = {
    Transition.RECALLED: EventKind.EPISODE_RECALLED,
    Transition.CLOSED: EventKind.EPISODE_OVER,
}
#: When one hears of it again. A check with a row of its own is told once per severity, so nobody waits for a reminder.
_RECALLED = "recalled daily while it lasts"
_TOLD_ONCE = "said once more if it grows worse, and when it is over"
#: A withdrawal is announced with these reasons only where it keeps failing.
_TRIED = frozenset({REPAIRING, Reason.RATE_LIMITED.value})


def own_kind(check: Check, severity: int) -> EventKind:
    """The routing row of a check that has one, at this severity."""
    return [kind for least, kind in _OWN[check] if severity >= least][-1]


def events(plan: Plan, now: int) -> tuple[Event, ...]:
    """One event per announced transition."""
    return tuple(_event(change, now) for change in plan.changes if change.announce and not change.told)


def _event(change: EpisodeChange, now: int) -> Event:
    check = Check(change.key.partition("/")[0])
    severity = change.finding.severity if change.finding else change.episode.severity if change.episode else 1
    summary = change.finding.summary if change.finding else change.episode.summary if change.episode else change.key
    reason = change.episode.reason if change.transition is Transition.CLOSED and change.episode else change.reason
    asked = EventKind.REVIEW_REQUESTED if reason == Reason.AWAITING_REVIEW else EventKind.EPISODE_ESCALATED
    announced = own_kind(check, severity) if check in OWN_ROUTE else asked
    kind = _OF.get(change.transition, announced)
    if check in OWN_ROUTE and change.transition is not Transition.CLOSED and change.transition is not Transition.RECALLED:
        kind = announced
    over = change.transition is Transition.CLOSED
    return Event(
        kind,
        key=f"{change.transition}/{change.key}/{now}",
        what=f"over: {summary}" if over else summary,
        where=change.where,
        done="it is over" if over else _done(change),
        next="" if over else _TOLD_ONCE if check in OWN_ROUTE else _RECALLED,
        command="" if over or change.finding is None else change.finding.remedy,
        over_of=announced if over else None,
        failed=not over,
    )


def _done(change: EpisodeChange) -> str:
    if change.finding is not None and change.finding.action in WITHDRAWALS and change.reason in _TRIED:
        return "tried again and again, without success"
    return {
        "level_disabled": "not repaired: this level is off",
        "breaker_open": "not repaired: the breaker is open",
        "awaiting_review": "waits for a person's approval",
        "no_repair": "automation has no repair for this",
        "repairing": "being repaired",
    }.get(change.reason, f"not repaired: {change.reason}")


def lines(plan: Plan) -> Iterable[str]:
    """The plan as a log reads it: what is done, what is left alone and why, what could not be judged."""
    for repair in plan.repairs:
        yield f"{repair.finding.key}: {repair.finding.summary} → {repair.action}"
    for rest in plan.suppressed:
        yield f"{rest.finding.key}: {rest.finding.summary} → left alone: {rest.reason}{f' ({rest.detail})' if rest.detail else ''}"
    for check, why in plan.skipped.items():
        yield f"{check} not judged: {why}"
