"""Servers: what a customer owns. One container each. States and their legal transitions are one table here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class ContainerType(StrEnum):
    GAME = "game"
    DEV = "dev"


class ServerState(StrEnum):
    CREATING = "creating"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELETING = "deleting"
    DELETED = "deleted"
    FAILED = "failed"


class Desired(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"


class Edge(StrEnum):
    """Whether players may be sent to the server. Only open ones are published or rehydrated."""

    OPEN = "open"
    WITHDRAWN = "withdrawn"


class BillingState(StrEnum):
    ACTIVE = "active"
    PAST_DUE = "past_due"
    SUSPENDED = "suspended"
    CANCELED = "canceled"


#: Billing states in which a customer may create and start servers.
MAY_RUN = frozenset({BillingState.ACTIVE, BillingState.PAST_DUE})

#: The only legal moves; anything else is refused and audited.
SERVER_TRANSITIONS: Mapping[ServerState, frozenset[ServerState]] = {
    ServerState.CREATING: frozenset({ServerState.ACTIVE, ServerState.SUSPENDED, ServerState.FAILED, ServerState.DELETED}),
    ServerState.ACTIVE: frozenset({ServerState.SUSPENDED, ServerState.DELETING}),
    ServerState.SUSPENDED: frozenset({ServerState.ACTIVE, ServerState.DELETING}),
    ServerState.FAILED: frozenset({ServerState.CREATING, ServerState.DELETING, ServerState.DELETED}),
    ServerState.DELETING: frozenset({ServerState.DELETED}),
    ServerState.DELETED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """A language runtime wanted in a developer container."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Server:
    """One row of the fleet. ``address`` is the reserved address without prefix length, the only one control traffic uses."""

    id: str
    customer_id: str
    name: str
    ctype: ContainerType
    flavor: str
    version: str
    memory_mb: int
    cores: int
    disk_gb: int
    node: str
    storage: str
    bridge: str
    template_vmid: int
    vmid: int
    address: str
    state: ServerState
    desired: Desired
    desired_by: str
    edge: Edge
    token_version: int
    created_at: int
    activated_at: int | None = None
    runtimes: tuple[Runtime, ...] = ()
    code_server: bool = False
    backup_policy: str = "daily"
    game_port: int = 25565

    @property
    def hostname(self) -> str:
        """The container's host name: derived, never a customer's input alone."""
        return f"zlh-{self.ctype.value}-{self.vmid}"
