"""Facts that people may want to hear of. ``decide/routing.py`` gives each a channel; a test proves none is without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class EventKind(StrEnum):
    REPAIR_SUCCEEDED = "repair_succeeded"
    BREAKER_OPENED = "breaker_opened"
    EPISODE_ESCALATED = "episode_escalated"
    EPISODE_RECALLED = "episode_recalled"
    EPISODE_OVER = "episode_over"
    REVIEW_REQUESTED = "review_requested"
    PROVISIONING_FAILED = "provisioning_failed"
    PROVISIONING_SUCCEEDED = "provisioning_succeeded"
    OPERATION_FAILED = "operation_failed"
    BILLING_WEBHOOK_FAILED = "billing_webhook_failed"
    PAYMENT_FAILED = "payment_failed"
    PAYMENT_RECEIVED = "payment_received"
    PLAN_CHANGED = "plan_changed"
    BACKUP_MISSED = "backup_missed"
    BACKUP_MISSED_TWICE = "backup_missed_twice"
    SOURCE_UNKNOWN = "source_unknown"
    SOURCE_UNKNOWN_LONG = "source_unknown_long"
    HOST_DOWN = "host_down"
    SOURCE_DRIFT = "source_drift"
    QUEUE_STALLED = "queue_stalled"
    LEASE_ABANDONED = "lease_abandoned"
    NO_SWEEP = "no_sweep"
    PATCH_FINISHED = "patch_finished"
    AUTOMATION_PAUSED = "automation_paused"
    AUTOMATION_RESUMED = "automation_resumed"
    DAILY_DIGEST = "daily_digest"
    CONTROLLER_ACTION = "controller_action"


@dataclass(frozen=True, slots=True)
class Event:
    """``key`` deduplicates: the same key is never written twice. ``what``/``where``/``done``/``next``/``command`` make the message.
    ``over_of`` names the kind that announced a condition which is now over."""

    kind: EventKind
    key: str
    what: str
    where: str = ""
    done: str = ""
    next: str = ""
    command: str = ""
    level: int = 0
    failed: bool = False
    over_of: EventKind | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


class Channel(StrEnum):
    CRITICAL = "alerts-critical"
    REPAIRS = "alerts-repairs"
    BILLING = "alerts-billing"
    PROVISIONING = "alerts-provisioning"
    HEALTH = "system-health"
    AUDIT = "audit-log"


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Route:
    """``not_before`` (ms) holds a message until quiet hours end; None sends at once."""

    channel: Channel
    ping: bool
    severity: Severity
    not_before: int | None = None
