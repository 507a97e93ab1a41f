"""The one table that turns an event into a channel, a ping and a severity. Pure; a test proves that no kind is without a row.

Called where an event is written to the outbox (flows and ``act``) and by the watchdog, which posts directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flows.decide.calendar import Calendar
from flows.domain.event import Channel, Event, EventKind, Route, Severity

_K, _C, _S = EventKind, Channel, Severity

_PAGE = Route(_C.CRITICAL, True, _S.CRITICAL)
_REMIND = Route(_C.CRITICAL, False, _S.WARNING)
_NOTE = Route(_C.HEALTH, False, _S.INFO)

#: Rows that depend on the kind alone.
_TABLE: Mapping[EventKind, Route] = {
    _K.BREAKER_OPENED: _PAGE,
    _K.EPISODE_ESCALATED: _PAGE,
    _K.EPISODE_RECALLED: _REMIND,
    _K.REVIEW_REQUESTED: _PAGE,
    _K.PROVISIONING_FAILED: Route(_C.PROVISIONING, True, _S.WARNING),
    _K.PROVISIONING_SUCCEEDED: Route(_C.PROVISIONING, False, _S.INFO),
    _K.OPERATION_FAILED: Route(_C.PROVISIONING, True, _S.WARNING),  # a job failed, whichever: as provisioning
    _K.BILLING_WEBHOOK_FAILED: Route(_C.BILLING, True, _S.WARNING),
    _K.PAYMENT_FAILED: Route(_C.BILLING, True, _S.WARNING),
    _K.PAYMENT_RECEIVED: Route(_C.BILLING, False, _S.INFO),
    _K.PLAN_CHANGED: Route(_C.BILLING, False, _S.INFO),
    _K.BACKUP_MISSED: Route(_C.HEALTH, False, _S.WARNING),
    _K.BACKUP_MISSED_TWICE: _PAGE,
    _K.SOURCE_UNKNOWN: Route(_C.HEALTH, False, _S.WARNING),
    _K.SOURCE_UNKNOWN_LONG: _PAGE,
    _K.HOST_DOWN: _PAGE,
    _K.SOURCE_DRIFT: _PAGE,
    _K.QUEUE_STALLED: _PAGE,
    _K.LEASE_ABANDONED: _PAGE,
    _K.NO_SWEEP: _PAGE,
    _K.AUTOMATION_PAUSED: _NOTE,
    _K.AUTOMATION_RESUMED: _NOTE,
    _K.DAILY_DIGEST: _NOTE,
    _K.CONTROLLER_ACTION: Route(_C.AUDIT, False, _S.INFO),
}


def route(event: Event, calendar: Calendar, now_ms: int) -> Route:
    """Where ``event`` goes, whether it pings, and until when it is held. ``now_ms``: milliseconds by the database's clock."""
    if event.kind is _K.REPAIR_SUCCEEDED:
        return _repair(event, calendar, now_ms)
    if event.kind is _K.PATCH_FINISHED:
        return Route(_C.HEALTH, event.failed, _S.WARNING if event.failed else _S.INFO)
    if event.kind is _K.EPISODE_OVER:
        return Route(_announced_in(event, calendar, now_ms), False, _S.INFO)
    return _TABLE[event.kind]


def _repair(event: Event, calendar: Calendar, now_ms: int) -> Route:
    if event.level < 2:
        return Route(_C.REPAIRS, False, _S.INFO)
    held = calendar.quiet_ends(now_ms)
    # Whether it pings is judged at the moment it will be read.
    free = not calendar.is_business(now_ms if held is None else held)
    return Route(_C.REPAIRS, free, _S.INFO, held)


def _announced_in(event: Event, calendar: Calendar, now_ms: int) -> Channel:
    if event.over_of is None or event.over_of is _K.EPISODE_OVER:
        return _C.CRITICAL
    return route(replace(event, kind=event.over_of), calendar, now_ms).channel
