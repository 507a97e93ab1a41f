"""Findings, what is done about them, and how they live over time (episodes)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Check(StrEnum):
    OPERATION_ORPHANED = "operation_orphaned"
    OPERATION_UNSUBMITTED = "operation_unsubmitted"
    STUCK_PROVISIONING = "stuck_provisioning"
    QUEUE_STALLED = "queue_stalled"
    CLEANUP_REQUIRED = "cleanup_required"
    DNS_RECORD = "dns_record"
    DNS_STALE_RECORD = "dns_stale_record"
    PROXY_REGISTRATION = "proxy_registration"
    PROXY_STALE_REGISTRATION = "proxy_stale_registration"
    BILLING_SUSPENDED = "billing_suspended"
    AGENT_OFFLINE = "agent_offline"
    WORKLOAD_STOPPED = "workload_stopped"
    WORKLOAD_ERROR = "workload_error"
    CONTAINER_MISSING = "container_missing"
    CONTAINER_ORPHANED = "container_orphaned"
    DUPLICATE_VMID = "duplicate_vmid"
    BACKUP_MISSED = "backup_missed"
    LEASE_ABANDONED = "lease_abandoned"
    HOST_DOWN = "host_down"
    SOURCE_DRIFT = "source_drift"
    SOURCE_UNKNOWN = "source_unknown"


class Action(StrEnum):
    """What a repair does. Order of execution is the order of this list."""

    REVOKE_AND_RESUBMIT = "revoke_and_resubmit"  # operation_orphaned
    SUBMIT_ATTEMPT = "submit_attempt"  # operation_unsubmitted: the same attempt, the engine never saw it
    NEXT_ATTEMPT = "next_attempt"  # operation_unsubmitted: the engine lost it
    FAIL_STUCK = "fail_stuck"  # stuck_provisioning
    UNDO_AGAIN = "undo_again"  # cleanup_required
    DEREGISTER_PROXY = "deregister_proxy"
    WITHDRAW_DNS = "withdraw_dns"
    SUSPEND_WORKLOAD = "suspend_workload"
    RESTART_AGENT = "restart_agent"  # agent_offline
    START_WORKLOAD = "start_workload"  # workload_stopped
    RESTART_WORKLOAD = "restart_workload"  # workload_error: one per approval
    PUBLISH_DNS = "publish_dns"
    REGISTER_PROXY = "register_proxy"
    REHYDRATE_PROXY = "rehydrate_proxy"
    RESTORE_BACKUP = "restore_backup"  # container_missing
    DESTROY_CONTAINER = "destroy_container"  # container_orphaned


#: Level of each check's repairs; 0: none, it only reports. A finding that automation cannot mend may stand below it.
LEVELS: Mapping[Check, int] = {
    **dict.fromkeys(Check, 1),
    **dict.fromkeys((Check.QUEUE_STALLED, Check.BACKUP_MISSED, Check.LEASE_ABANDONED), 0),
    **dict.fromkeys((Check.HOST_DOWN, Check.SOURCE_UNKNOWN, Check.DUPLICATE_VMID), 0),
    **dict.fromkeys((Check.AGENT_OFFLINE, Check.WORKLOAD_STOPPED, Check.WORKLOAD_ERROR), 2),
    **dict.fromkeys((Check.CONTAINER_MISSING, Check.CONTAINER_ORPHANED), 3),
}
#: Withdrawals neither count against a breaker nor are blocked by one; 12 an hour per server at most.
WITHDRAWALS = frozenset({Action.DEREGISTER_PROXY, Action.WITHDRAW_DNS})
#: Counted by the operation's own attempts, never by a server's breaker.
OPERATION_ACTIONS = frozenset({Action.REVOKE_AND_RESUBMIT, Action.SUBMIT_ATTEMPT, Action.NEXT_ATTEMPT, Action.FAIL_STUCK, Action.UNDO_AGAIN})
#: Last longer than a sweep may: each becomes an operation, and is under way until that ends.
BECOME_OPERATIONS = frozenset({Action.RESTART_AGENT, Action.START_WORKLOAD, Action.RESTART_WORKLOAD})
#: Need a person's approval each time, whatever the level.
REVIEWED = frozenset({Action.RESTART_WORKLOAD, Action.RESTORE_BACKUP, Action.DESTROY_CONTAINER})
#: What cannot be approved yet, and why.
NOT_YET: Mapping[Action, str] = {Action.RESTORE_BACKUP: "there is no flow `backup` yet, so there is nothing to restore from by itself"}


class Reason(StrEnum):
    """Why a finding is not being repaired in this sweep."""

    LEVEL_DISABLED = "level_disabled"
    BREAKER_OPEN = "breaker_open"
    LOCKED = "locked"
    OPERATION_RUNNING = "operation_running"
    UNCONFIRMED = "unconfirmed"
    CORRELATED = "correlated"
    RATE_LIMITED = "rate_limited"
    AWAITING_REVIEW = "awaiting_review"
    PAUSED = "paused"
    NO_REPAIR = "no_repair"


#: Reasons with which automation will not mend a finding by itself: a person is told.
ESCALATES = frozenset({Reason.LEVEL_DISABLED, Reason.BREAKER_OPEN, Reason.AWAITING_REVIEW, Reason.NO_REPAIR})
#: Checks with a row of their own in the routing table; they are announced by it alone.
OWN_ROUTE = frozenset({Check.BACKUP_MISSED, Check.HOST_DOWN, Check.SOURCE_DRIFT, Check.QUEUE_STALLED, Check.LEASE_ABANDONED, Check.SOURCE_UNKNOWN})


class Outcome(StrEnum):
    REPAIRED = "repaired"
    FAILED = "failed"
    UNVERIFIED = "unverified"
    ALREADY_HEALED = "already_healed"
    FENCED = "fenced"
    ORDERED = "ordered"  # became an operation, which reports its own end


@dataclass(frozen=True, slots=True)
class Finding:
    """One drift. ``subject`` is a server id, ``operation:<id>``, ``dns:<name>``, ``proxy:<name>``, ``host:<node>``, ``source:<name>``,
    ``queue:<name>``, ``lease:<subject>``, ``container:<vmid>`` or ``vmid:<vmid>``; with ``check`` it keys the episode. ``where`` is what
    people call its place, filled in by the plan."""

    check: Check
    subject: str
    summary: str
    level: int
    action: Action | None = None
    server_id: str | None = None
    operation_id: str | None = None
    host: str | None = None
    confirmed: bool = True
    sources: frozenset[str] = frozenset({"database"})
    evidence: Mapping[str, object] = field(default_factory=dict)
    remedy: str = ""
    severity: int = 1  # grows where the routing table has steps: backup missed 1, 2; source unknown 1, 3
    not_before: int | None = None  # back-off: the repair waits until then
    where: str = ""

    @property
    def key(self) -> str:
        return f"{self.check.value}/{self.subject}"


@dataclass(frozen=True, slots=True)
class Repair:
    """An order to ``act``; ``review_id`` names the approval that allows it."""

    finding: Finding
    action: Action
    review_id: str | None = None


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A finding that stays, and why."""

    finding: Finding
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """An open episode as stored. ``reason`` is ``repairing`` while a repair is ordered, else a :class:`Reason`."""

    id: str
    check: Check
    subject: str
    opened_at: int
    last_seen_at: int
    reason: str
    severity: int = 1
    server_id: str | None = None
    escalated_at: int | None = None
    recalled_at: int | None = None
    summary: str = ""
    remedy: str = ""
    evidence: Mapping[str, object] = field(default_factory=dict)
    closed_at: int | None = None

    @property
    def key(self) -> str:
        return f"{self.check.value}/{self.subject}"


@dataclass(frozen=True, slots=True)
class RepairRow:
    """A repair of the last hour. ``counted`` says whether it counts against its subject's breaker."""

    id: str
    check: Check
    action: Action
    subject: str
    server_id: str | None
    host: str | None
    level: int
    counted: bool
    intent_at: int
    outcome: Outcome | None = None
    outcome_at: int | None = None
    episode_id: str | None = None
    operation_id: str | None = None
    detail: str = ""


class BrakeScope(StrEnum):
    ALL = "all"
    HOST = "host"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class BrakeRow:
    """A pause set by a person. ``until`` None lasts until resumed."""

    id: str
    scope: BrakeScope
    target: str
    reason: str
    actor: str
    created_at: int
    until: int | None = None
    recalled_at: int | None = None


class Decision(StrEnum):
    """What became of a review. Undecided ones have none."""

    APPROVED = "approved"
    REJECTED = "rejected"
    CARRIED_OUT = "carried_out"  # approved, and its one act was begun
    WITHDRAWN = "withdrawn"  # what it asked about is over, or has changed


@dataclass(frozen=True, slots=True)
class Review:
    """A plan that a person decides on. ``plan_hash`` is of ``plan``, and ``subject`` as in :class:`Finding`; it is good until ``expires_at``
    (ms), asked and approved alike."""

    id: str
    check: Check
    action: Action
    subject: str
    plan_hash: str
    plan: Mapping[str, object]
    requested_by: str
    requested_at: int
    expires_at: int
    server_id: str | None = None
    decision: Decision | None = None
    decided_by: str | None = None
    decided_at: int | None = None

    @property
    def key(self) -> str:
        return f"{self.check.value}/{self.subject}"


class Transition(StrEnum):
    """What happens to an episode in a sweep. Rows, alerts and audit lines are written on these, never each minute."""

    OPENED = "opened"
    CHANGED = "changed"
    ESCALATED = "escalated"
    RECALLED = "recalled"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class EpisodeChange:
    """``finding`` is None for a close; ``where`` is the place of either. ``announce`` says whether people hear of it; ``told`` that another
    event, the opened breaker's, has told them already; ``reminder`` that they were asked for the same before."""

    transition: Transition
    key: str
    finding: Finding | None
    episode: EpisodeRow | None
    reason: str
    announce: bool = False
    told: bool = False
    where: str = ""
    reminder: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What one sweep does, in order, and what it leaves alone and why. ``skipped`` names checks that read an unknown source; ``asked`` are
    reviews to be requested, ``withdrawn`` ids of reviews (with the reason) that nobody needs to decide any more."""

    repairs: tuple[Repair, ...]
    suppressed: tuple[Suppressed, ...]
    changes: tuple[EpisodeChange, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[Review, ...] = ()
    withdrawn: Mapping[str, str] = field(default_factory=dict)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(r.finding for r in self.repairs) + tuple(s.finding for s in self.suppressed)


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds, from settings. Times in milliseconds."""

    confirm_sweeps: int = 2
    breaker_attempts: int = 3
    breaker_window_ms: int = 3_600_000
    bulk_per_hour: int = 3
    withdrawals_per_hour: int = 12
    concurrent_repairs: int = 4
    concurrent_per_host: int = 2
    max_attempts: int = 3
    unsubmitted_ms: int = 30_000
    stuck_ms: int = 15 * 60_000
    host_down_fraction: float = 0.5
    host_down_min: int = 3
    drift_fraction: float = 0.2
    drift_min: int = 5
    backup_interval_ms: Mapping[str, int] = field(default_factory=lambda: {"daily": 86_400_000, "hourly": 3_600_000, "weekly": 604_800_000})
    source_critical_sweeps: int = 3
    recall_ms: int = 86_400_000
    review_ms: int = 86_400_000
    cleanup_attempts: int = 3
    cleanup_backoff_ms: int = 60_000
    player_address: str = ""
    player_port: int = 25565
    game_domain: str = ""
    record_ttl_s: int = 60
    our_user: str = ""
