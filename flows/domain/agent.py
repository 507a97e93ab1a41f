"""What an agent says of its container. Its answers are hostile input: validated in the client, identity checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class WorkloadState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    CRASHED = "crashed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """The answer of ``GET /status``. ``operation`` names a job under way, None when idle."""

    server_id: str
    version: str
    state: WorkloadState
    ready: bool
    operation: str | None = None
    maintenance: bool = False
    uptime_s: float = 0.0
    restarts: int = 0
    players: int | None = None
    provisioning_complete: bool = True
    missing: tuple[str, ...] = ()
    last_crash: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """The last sweep's (or operation's) knowledge of a server, as stored. ``misses`` counts consecutive sweeps without an answer,
    ``unready`` consecutive sweeps whose answer was *not ready*."""

    server_id: str
    at: int
    reachable: bool
    ready: bool | None
    state: WorkloadState | None
    misses: int = 0
    unready: int = 0
    operation: str | None = None
    players: int | None = None
    provisioning_complete: bool | None = None
    last_crash: Mapping[str, object] | None = None
    reason: str = ""
