"""What exists in the lab: nodes, containers, what runs in them. The parts share it; nobody outside the lab sees it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from flows.lab.substance import Records, Substance


@dataclass
class LabAgent:
    """The agent installed in a container, and the workload under it. ``token`` is compared in constant time;
    ``highest_lease`` survives an agent's restart, as the real one's file does."""

    server_id: str
    version: str
    token: str
    previous_token: str | None = None
    certificate: str | None = None  # PEM chain; None: plain HTTP
    key: str | None = None  # PEM
    kind: str = "game"
    alive: bool = True  # False: killed, connections are refused
    frozen: bool = False  # True: accepts and never answers
    workload: str = "stopped"  # stopped, starting, running, stopping, crashed, error
    ready_at: float = 0.0  # monotonic time from which a running workload is ready
    prepared: bool = False
    highest_lease: int = 0
    started_at: float = field(default_factory=time.time)
    restarts: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)  # every mutating request with its lease token: judges read it
    autostart: bool = False  # the workload ran when the container went down, or was asked to: it comes back with the container
    prepared_as: str = ""  # fingerprint of the variables with which the workload was prepared
    code_server: bool = False  # dev: installed
    claims: str | None = None  # fault: answers with this server id instead of its own
    last_crash: dict[str, Any] | None = None
    players: int = 0


@dataclass
class LabContainer:
    """A record with a lifecycle. ``config`` holds raw keys as Proxmox has them (hostname, description, net0, memory, …)."""

    vmid: int
    node: str
    status: str = "stopped"  # running | stopped
    lock: str | None = None
    template: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    started_at: float | None = None
    trusted_key: str | None = None  # SSH public key installed by the trust step
    host_key: str | None = None
    agent: LabAgent | None = None
    snapshots: dict[str, dict[str, Any]] = field(default_factory=dict)  # name → config, snaptime, description, parent
    parent: str | None = None  # the snapshot that the present state descends from
    pool: str | None = None

    def start(self) -> None:
        if self.status != "running":
            self.status, self.started_at = "running", time.time()

    def stop(self) -> None:
        self.status, self.started_at = "stopped", None

    @property
    def address(self) -> str | None:
        """The static address of ``net0``, without prefix length."""
        for part in str(self.config.get("net0", "")).split(","):
            if part.startswith("ip=") and "/" in part:
                return part[3:].split("/")[0]
        return None


@dataclass
class LabNode:
    name: str
    online: bool = True
    memory_mb: int = 65_536
    cores: int = 16
    disk_gb: int = 1_000


Listener = Callable[[int], Awaitable[None]]


class World:
    """All of it. A part that changes a container calls :meth:`changed`; parts that care have subscribed. ``substance`` is what stands
    behind the containers' records."""

    def __init__(self, substance: Substance | None = None) -> None:
        self.substance: Substance = Records() if substance is None else substance
        self.nodes: dict[str, LabNode] = {}
        self.containers: dict[int, LabContainer] = {}
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def changed(self, vmid: int) -> None:
        """Tells every part that container ``vmid`` appeared, changed or vanished."""
        for listener in self._listeners:
            await listener(vmid)

    def by_address(self, address: str) -> LabContainer | None:
        return next((c for c in self.containers.values() if c.address == address and not c.template), None)


def describe(container: LabContainer) -> dict[str, Any]:
    """A container for the control API. No secret: what the agent holds is the agents' own to tell."""
    return {
        "vmid": container.vmid,
        "node": container.node,
        "status": container.status,
        "lock": container.lock,
        "template": container.template,
        "name": container.config.get("hostname"),
        "address": container.address,
        "config": dict(container.config),
        "snapshots": sorted(container.snapshots),
        "trusted": container.trusted_key is not None,
        "agent": container.agent is not None,
    }
