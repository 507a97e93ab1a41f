"""Rows as they lie in the database, not as the domain wants them: a value that no enum knows must survive being read, to be reported.

Read by :mod:`flows.state.records`, judged by :mod:`flows.decide.validate`. Times in milliseconds by the database's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """Every server that is not deleted, and those that were deleted a moment ago or still claim a name."""

    id: str
    name: str
    live_name: str | None
    ctype: str
    node: str
    vmid: int
    address: str
    state: str
    created_at: int
    activated_at: int | None = None
    deleted_at: int | None = None


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """Every operation that lives or claims a server. ``server_state`` None: its server has no row."""

    id: str
    server_id: str
    live_server: str | None
    kind: str
    state: str
    attempt: int
    attempt_state: str
    created_at: int
    progress_at: int
    deadline_at: int
    finished_at: int | None = None
    server_state: str | None = None


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Every lease that somebody holds, or that is half given back. ``server_state``, ``operation_state`` None: no such row."""

    subject: str
    kind: str | None
    holder: str | None
    operation_id: str | None
    expires_at: int
    server_state: str | None = None
    operation_state: str | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """A VMID (as text) or an address that is not free. ``server_state`` None: no such server."""

    thing: str
    state: str
    server_id: str | None
    since: int = 0
    until: int | None = None
    server_state: str | None = None


@dataclass(frozen=True, slots=True)
class Overdue:
    """A row of another table that waits longer than it may: ``table``, ``key``, what it is and since when."""

    table: str
    key: str
    what: str
    since: int


@dataclass(frozen=True, slots=True)
class Orphan:
    """Rows of ``table`` whose ``column`` refers to a row of ``refers_to`` that is not there: how many, and the first keys."""

    table: str
    column: str
    refers_to: str
    count: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OddValue:
    """Rows of ``table`` whose ``column`` holds a value that this program does not know."""

    table: str
    column: str
    value: str
    count: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Records:
    """One moment of the database, at ``now``."""

    now: int
    servers: tuple[ServerRecord, ...] = ()
    operations: tuple[OperationRecord, ...] = ()
    leases: tuple[LeaseRecord, ...] = ()
    vmids: Mapping[int, Reservation] = field(default_factory=dict)
    addresses: Mapping[str, Reservation] = field(default_factory=dict)
    overdue: tuple[Overdue, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    odd: tuple[OddValue, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """How old a state may be, in milliseconds, from settings. ``grace_ms``: what the next sweeps put right by themselves is no finding yet."""

    stuck_ms: int = 15 * 60_000
    operation_ms: int = 60 * 60_000
    grace_ms: int = 180_000
