"""What acting needs, put together once by ``bootstrap``. Tests and the simulator build their own."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import SecretStr

from flows.domain.event import Event, Route
from flows.domain.ports import AgentWriter, Artifact, DnsWriter, Engine, PlaybookRunner, ProxmoxWriter, ProxyWriter
from flows.domain.server import Server
from flows.settings import Settings
from flows.state.database import Database

Boundary = Callable[[str], Awaitable[None]]


async def _no_boundary(name: str) -> None:
    """Production has no hooks at the journaled boundaries; kill tests and the simulator do."""


def _abandon() -> None:
    """Ends this process at once: the playbook's supervisor sees the pipe close and ends its whole group."""
    os._exit(70)


@dataclass(frozen=True)
class Identity:
    """Credentials of one server's agent: token of its present version, certificate and key as PEM."""

    token: SecretStr
    previous_token: SecretStr | None
    certificate: str | None
    key: SecretStr | None


@dataclass(frozen=True)
class Deps:
    """``identity`` derives an agent's credentials, ``artifact`` finds a promoted artifact by (kind, name, version or ""),
    ``route`` is the routing table with the operator's calendar, ``public_key`` the controller's SSH key."""

    settings: Settings
    database: Database
    proxmox: ProxmoxWriter
    agents: AgentWriter
    proxy: ProxyWriter
    dns: DnsWriter
    engine: Engine
    runner: PlaybookRunner
    identity: Callable[[Server], Identity]
    artifact: Callable[[str, str, str], Awaitable[Artifact]]
    route: Callable[[Event, int], Route]
    public_key: Callable[[], str]
    holder: str
    boundary: Boundary = _no_boundary
    abandon: Callable[[], None] = _abandon
