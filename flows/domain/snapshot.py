"""Everything one sweep knows, frozen. ``decide`` reads nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flows.domain.agent import AgentStatus, Observation
from flows.domain.finding import BrakeRow, EpisodeRow, RepairRow, Review
from flows.domain.known import Known, Source, Unknown
from flows.domain.lease import Lease
from flows.domain.operation import Operation, StepRow
from flows.domain.server import BillingState, Server
from flows.domain.sources import EngineView, ProxmoxView, ProxyView, ZoneView


@dataclass(frozen=True, slots=True)
class BackupFact:
    """The last verified backup of a server."""

    server_id: str
    verified_at: int


@dataclass(frozen=True, slots=True)
class SourceFact:
    """How a source has been answering: ``misses`` consecutive sweeps without a full answer, before this one."""

    source: str
    misses: int
    since: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class QueueFact:
    """``waiting`` orders submitted and not claimed; ``oldest_at`` when the one that waits longest last made progress (a new attempt is
    none); ``progress_at`` when an order of the queue last moved (None: never)."""

    queue: str
    waiting: int
    oldest_at: int | None
    progress_at: int | None


@dataclass(frozen=True, slots=True)
class Fleet:
    """The database's answer. ``servers`` excludes deleted ones."""

    servers: Mapping[str, Server]
    billing: Mapping[str, BillingState]
    operations: Mapping[str, Operation] = field(default_factory=dict)
    steps: Mapping[str, tuple[StepRow, ...]] = field(default_factory=dict)
    leases: Mapping[str, Lease] = field(default_factory=dict)
    brakes: tuple[BrakeRow, ...] = ()
    episodes: Mapping[str, EpisodeRow] = field(default_factory=dict)
    repairs: tuple[RepairRow, ...] = ()
    observations: Mapping[str, Observation] = field(default_factory=dict)
    backups: Mapping[str, BackupFact] = field(default_factory=dict)
    sources: Mapping[str, SourceFact] = field(default_factory=dict)
    queues: tuple[QueueFact, ...] = ()
    #: Per entry not yet confirmed, "proxy:<name>", "dns:<name>", "container:<vmid>", "vmid:<vmid>" or "idle:<server>" → consecutive sweeps seen.
    sightings: Mapping[str, int] = field(default_factory=dict)
    #: Up to which level automation repairs; a person sets it.
    max_level: int = 1
    #: Reviews of the last days, decided or not; the newest last.
    reviews: tuple[Review, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``now`` is the database's clock, the only one. ``agents`` holds the servers that were probed."""

    now: int
    epoch: int
    generation: int
    fleet: Fleet
    proxmox: Source[ProxmoxView]
    proxy: Source[ProxyView]
    dns: Source[ZoneView]
    engine: Source[EngineView]
    agents: Mapping[str, Known[AgentStatus] | Unknown]
    #: Agents that refused our credential or answered as somebody else: reachable, not trusted.
    distrusted: Mapping[str, str] = field(default_factory=dict)
