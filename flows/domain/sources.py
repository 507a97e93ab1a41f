"""What each source answers, already translated from its vendor's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Tag of every container that we configured.
OUR_TAG = "zlh"
#: Tag with which a person at the node says: leave it as it is.
HOLD_TAG = "zlh-hold"


@dataclass(frozen=True, slots=True)
class Container:
    """One LXC container as Proxmox lists it. ``status`` is running, stopped or unknown; ``lock`` is None when unlocked."""

    vmid: int
    node: str
    status: str
    name: str = ""
    tags: frozenset[str] = frozenset()
    lock: str | None = None
    uptime_s: int = 0
    template: bool = False


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task under way. ``vmid`` is the *source* for a vzclone."""

    upid: str
    node: str
    kind: str
    vmid: int | None
    user: str


@dataclass(frozen=True, slots=True)
class ProxmoxView:
    """Given only when the token holds VM.Audit on /vms and the cluster is quorate."""

    containers: Mapping[int, Container]
    nodes_online: Mapping[str, bool]
    tasks: tuple[RunningTask, ...] = ()
    duplicate_vmids: frozenset[int] = frozenset()
    #: VMID → user of its last stop or shutdown task, where the task list still shows one and no later start.
    last_stop_by: Mapping[int, str] = field(default_factory=dict)
    #: VMIDs of ours that are not listed and were asked for one by one: proven absent.
    absent: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """``GET /nodes/N/lxc/ID/config`` translated. ``raw`` holds every key as Proxmox gave it."""

    vmid: int
    description: str
    tags: frozenset[str]
    lock: str | None
    digest: str
    raw: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """``finished`` False: still running. ``ok`` is exitstatus ``OK`` or ``WARNINGS: n``; ``exitstatus`` "unexpected status" means unknown."""

    upid: str
    finished: bool
    ok: bool
    exitstatus: str = ""
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """A backend that the proxy would send players to."""

    name: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class ProxyView:
    registrations: Mapping[str, Registration]
    uptime_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """One DNS record set member. ``name`` is relative to nothing: fully qualified without the trailing dot, lower case."""

    name: str
    rtype: str
    value: str
    ttl: int = 60


@dataclass(frozen=True, slots=True)
class ZoneView:
    """All records of the game zone, and which names carry a TXT owner record of ours (name → server id)."""

    records: Mapping[str, tuple[Record, ...]]
    owners: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class EngineRun:
    """A flow run: for information, never proof of life."""

    id: str
    key: str
    state: str
    finished: bool


@dataclass(frozen=True, slots=True)
class EngineView:
    """Runs that the engine knows under keys of live operations, finished or not."""

    runs: Mapping[str, EngineRun]
