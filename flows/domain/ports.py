"""What the rest of the program needs from the outside world, as protocols. ``flows.clients`` implements them;
observers get the ``…Reader`` half, only ``act`` gets a ``…Writer``. All raise errors of :mod:`flows.errors` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flows.domain.agent import AgentStatus
from flows.domain.known import Known, Unknown
from flows.domain.server import Server
from flows.domain.sources import (
    ContainerConfig,
    EngineRun,
    ProxmoxView,
    ProxyView,
    Record,
    TaskStatus,
    ZoneView,
)


@dataclass(frozen=True, slots=True)
class CloneSpec:
    """A clone takes no tags: ``description`` names the operation, ``hostname`` is derived."""

    node: str
    template_vmid: int
    vmid: int
    storage: str
    hostname: str
    description: str


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """Target of ``configure``: absolute values, so that it converges. ``tags`` replace what the template had."""

    tags: frozenset[str]
    cores: int
    memory_mb: int
    disk_gb: int
    bridge: str
    address_cidr: str
    gateway: str
    on_boot: bool = True


class ProxmoxReader(Protocol):
    async def view(self) -> ProxmoxView:
        """The bulk answer of a sweep. Raises Unproven where rights or quorum make it untrustworthy."""

    async def config(self, node: str, vmid: int) -> ContainerConfig:
        """Raises NotFound only on Proxmox's literal "does not exist"; that alone is no proof of absence."""

    async def status(self, node: str, vmid: int) -> str:
        """``running`` or ``stopped``."""

    async def proven_absent(self, vmid: int, *, template_vmid: int | None = None) -> bool:
        """True: quorate, ``nextid`` says free, no task for it runs and no clone of our template runs. False: it exists.
        Raises Unproven where none can be shown."""

    async def where(self, vmid: int) -> tuple[str, str] | None:
        """Kind (``lxc``, ``qemu``) and node of the guest that has the VMID; None where the cluster lists none, which proves no absence.
        Raises Unproven where rights or quorum make the list untrustworthy."""

    async def task(self, upid: str) -> TaskStatus: ...

    async def tasks_of(self, vmid: int) -> Sequence[TaskStatus]:
        """Running tasks that name the VMID."""

    async def clone_tasks(self, node: str, template_vmid: int, since_s: int) -> Sequence[tuple[str, bool]]:
        """``(upid, running)`` of every vzclone of the template by our own token since a time (Unix seconds)."""

    async def cloning(self, node: str) -> Sequence[str]:
        """UPIDs of the clones, of whatever template, that our own token has running on a node."""

    async def doctor(self) -> Mapping[str, object]:
        """Version, rights held and missing, quorum, clock difference in seconds."""


class ProxmoxWriter(ProxmoxReader, Protocol):
    """Each mutating call returns a UPID; store it, then wait with :meth:`wait`. None: nothing needed to be done."""

    async def clone(self, spec: CloneSpec) -> str: ...
    async def configure(self, node: str, vmid: int, spec: ContainerSpec) -> str | None: ...
    async def start(self, node: str, vmid: int) -> str | None: ...
    async def stop(self, node: str, vmid: int) -> str | None: ...
    async def shutdown(self, node: str, vmid: int, timeout_s: int) -> str | None: ...
    async def destroy(self, node: str, vmid: int) -> str: ...
    async def wait(self, upid: str, deadline_s: float) -> TaskStatus:
        """Polls to the end. Raises TaskFailed (with the log's tail), DeadlineExceeded, or Unproven for an unexpected exit status."""


class AgentReader(Protocol):
    async def probe(self, servers: Sequence[Server]) -> Mapping[str, Known[AgentStatus] | Unknown]:
        """``GET /status`` of all, bounded concurrency, one retry, identity compared. A refused credential or another's
        identity is ``Unknown`` whose reason begins with ``distrusted:``."""

    async def status(self, server: Server) -> AgentStatus: ...
    async def health(self, server: Server) -> Mapping[str, object]: ...
    async def ready(self, server: Server) -> tuple[bool, str]:
        """``(True, "")`` or ``(False, reason)``."""


class AgentWriter(AgentReader, Protocol):
    """Mutating calls carry the lease token; 412 is Fenced, 409 is Busy (names the operation), 401 Unauthorized."""

    async def start(self, server: Server, token: int) -> None: ...
    async def stop(self, server: Server, token: int) -> None: ...
    async def restart(self, server: Server, token: int) -> None: ...


class ProxyReader(Protocol):
    async def view(self) -> ProxyView: ...


class ProxyWriter(ProxyReader, Protocol):
    """Lower lease tokens than the bridge has seen are Fenced. Both calls are convergent."""

    async def register(self, name: str, address: str, port: int, token: int) -> None: ...
    async def deregister(self, name: str, token: int) -> None: ...
    async def rehydrate(self, leave: Collection[str] = ()) -> None:
        """Asks the bridge to pull the whole list again (``POST /rehydrate``), and to leave the registrations named in ``leave`` as they
        are."""


class DnsReader(Protocol):
    async def zone(self) -> ZoneView: ...
    async def records(self, name: str) -> tuple[Record, ...]: ...


class DnsWriter(DnsReader, Protocol):
    async def publish(self, name: str, wanted: Sequence[Record], owner: str, seen: Sequence[Record]) -> None:
        """Replaces the name's records and its TXT owner record, with a prerequisite on the value seen; changed meanwhile is Conflict."""

    async def withdraw(self, name: str, owner: str, seen: Sequence[Record]) -> None: ...


@dataclass(frozen=True, slots=True)
class Play:
    """A playbook run. ``secrets`` never leave tmpfs; ``variables`` and they together must satisfy the argument specs."""

    playbook: str
    server: Server
    variables: Mapping[str, object]
    secrets: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class PlayResult:
    """``facts`` are what the play set by ``ansible.builtin.set_stats``; ``tail`` the last lines of a failure, secrets removed."""

    ok: bool
    changed: bool
    unreachable: bool = False
    facts: Mapping[str, object] = field(default_factory=dict)
    tail: str = ""
    failed_task: str = ""


class PlaybookRunner(Protocol):
    async def run(self, play: Play, on_event: Callable[[str], None] | None = None) -> PlayResult:
        """Ends the whole process tree on cancellation, time-out and death of the caller. Raises DeadlineExceeded on time-out."""


class Engine(Protocol):
    async def submit(self, deployment: str, key: str, parameters: Mapping[str, object], queue: str) -> str:
        """Idempotent by ``key``; returns the run's id. No answer is Unreachable (the engine may still have it)."""

    async def runs(self, keys: Sequence[str]) -> Mapping[str, EngineRun]:
        """Every run known under these keys, paged to the end."""

    async def cancel(self, run_id: str) -> None: ...
    async def give_up(self, run_id: str, reason: str) -> None:
        """Declares a run dead (crashed), which frees its slot. Only for runs that are fenced: it ends no process."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An entry of the catalog."""

    kind: str
    name: str
    version: str
    url: str
    sha256: str
    size: int
    state: str  # candidate, promoted, withdrawn


class Catalog(Protocol):
    async def artifacts(self) -> Sequence[Artifact]:
        """The last good copy if the artifact server does not answer; Unreachable if there never was one."""

    @property
    def stale(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a message. ``ambiguous``: no answer came; it may have arrived."""

    delivered: bool
    status: int | None = None
    retry_after_s: float | None = None
    ambiguous: bool = False
    permanent: bool = False
    reason: str = ""


class Notifier(Protocol):
    async def send(self, channel: str, text: str, *, ping: bool, key: str) -> Delivery: ...
    async def mail(self, severity: str, subject: str, text: str, *, key: str) -> Delivery | None:
        """None where no address is configured for the severity."""


class Gate(Protocol):
    """The optional lock in front of the epoch row."""

    async def enter(self, holder: str, ttl_s: float) -> bool | None:
        """True: entered. False: somebody else is in. None: unreachable or not configured; go on by the row alone."""

    async def renew(self, holder: str, ttl_s: float) -> bool | None: ...
    async def leave(self, holder: str) -> None: ...
