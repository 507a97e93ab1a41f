"""Opens and closes the agents' listeners as containers come, go, start, stop, and as agents are deployed, killed and revived."""

from __future__ import annotations

import asyncio
import os
import ssl
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flows.lab.agents.routes import build
from flows.lab.agents.workload import Workload
from flows.lab.config import AgentsConfig, LabConfig
from flows.lab.faults import Faults
from flows.lab.part import PartError
from flows.lab.serving import Site, free_port
from flows.lab.world import LabAgent, LabContainer, World


async def start(config: LabConfig, world: World, faults: Faults) -> AgentsPart:
    part = AgentsPart(config.agents, world, faults)
    world.subscribe(part.changed)
    for vmid in list(world.containers):
        await part.changed(vmid)
    return part


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS as the agent's role configures it. The key touches a private file for the moment that OpenSSL needs it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    descriptor, path = tempfile.mkstemp(prefix="zlh-lab-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{certificate.strip()}\n{key.strip()}\n")
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
    return context


@dataclass
class _Seat:
    """One container's place: its workload, and the listener if there is one now. ``spec`` is what the listener was opened with."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    workload: Workload | None = None
    boot: float | None = None
    up: bool = False
    site: Site | None = None
    spec: tuple[str, str | None, str | None] | None = None
    error: str = ""


class AgentsPart:
    """``inspect()`` shows each agent with its calls; secrets stay inside."""

    name = "agents"

    def __init__(self, config: AgentsConfig, world: World, faults: Faults) -> None:
        self._config, self._world, self._faults = config, world, faults
        self.port = config.port or free_port()
        self._seats: dict[int, _Seat] = {}
        self._closed = False

    @property
    def endpoints(self) -> dict[str, str]:
        return {"pool": self._config.pool, "port": str(self.port)}

    async def changed(self, vmid: int) -> None:
        """Brings container ``vmid``'s listener and workload in line with the world."""
        if self._closed:
            return
        seat = self._seats.setdefault(vmid, _Seat())
        async with seat.lock:
            if self._closed or self._seats.get(vmid) is not seat:
                return  # gone while we waited: whoever removed it saw the same world
            container = self._world.containers.get(vmid)
            agent = container.agent if container is not None else None
            if seat.workload is not None and seat.workload.agent is not agent:
                await self._hang_up(seat)
                await seat.workload.close()
                seat.workload, seat.up = None, False
            if container is None or agent is None:
                self._seats.pop(vmid, None)
                return
            if seat.workload is None:
                seat.workload = Workload(agent, self._config)
            await self._power(seat, seat.workload, container)
            await self._listen(seat, seat.workload, container, agent)

    async def _power(self, seat: _Seat, workload: Workload, container: LabContainer) -> None:
        node = self._world.nodes.get(container.node)
        up = container.status == "running" and (node is None or node.online)
        if seat.up and (not up or container.started_at != seat.boot):
            await workload.power_off()
            await self._hang_up(seat)
            seat.up = False
        if up and not seat.up:
            seat.up, seat.boot = True, container.started_at
            workload.agent.alive, workload.agent.frozen = True, False  # a boot starts every unit
            await workload.power_on()
        elif up and workload.agent.kind == "dev":
            await workload.power_on()  # the role that installs code-server starts its unit

    async def _listen(self, seat: _Seat, workload: Workload, container: LabContainer, agent: LabAgent) -> None:
        address = container.address
        wanted = (address, agent.certificate, agent.key) if seat.up and agent.alive and address else None
        if wanted == seat.spec:
            return
        await self._hang_up(seat)
        if wanted is None:
            return
        try:
            tls = server_context(wanted[1], wanted[2]) if wanted[1] and wanted[2] else None
            site = Site((wanted[0], self.port), lambda: build(container, workload, self._faults), tls)
            await site.open()
        except OSError as error:  # ssl.SSLError is one: a bad certificate leaves the agent without a listener, as it would the real one
            seat.error = f"cannot listen on {wanted[0]}:{self.port}: {error}"
            return
        seat.site, seat.spec, seat.error = site, wanted, ""
        agent.started_at = time.time()

    async def _hang_up(self, seat: _Seat) -> None:
        site, seat.site, seat.spec = seat.site, None, None
        if site is not None:
            await site.close()

    async def restart(self) -> None:
        """Every agent's process ends and starts again; workloads go on."""
        for vmid, seat in list(self._seats.items()):
            async with seat.lock:
                await self._hang_up(seat)
            await self.changed(vmid)

    async def stop(self) -> None:
        self._closed = True
        for seat in list(self._seats.values()):
            async with seat.lock:
                await self._hang_up(seat)
                if seat.workload is not None:
                    await seat.workload.close()
        self._seats.clear()

    def inspect(self) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for vmid, seat in self._seats.items():
            load = seat.workload
            if load is None:
                continue
            agent = load.agent
            shown[str(vmid)] = {
                "server_id": agent.server_id,
                "address": seat.spec[0] if seat.spec else None,
                "listening": seat.site is not None,
                "tls": bool(agent.certificate),
                "version": agent.version,
                "alive": agent.alive,
                "frozen": agent.frozen,
                "state": load.state,
                "ready": load.ready[0],
                "operation": load.live.kind if load.live else None,
                "prepared": agent.prepared,
                "autostart": agent.autostart,
                "highest_lease": agent.highest_lease,
                "restarts": agent.restarts,
                "calls": list(agent.calls),
                "error": seat.error,
            }
        return {"port": self.port, "agents": shown}

    async def manipulate(self, op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``kill`` (connections refused), ``freeze`` (accepts, never answers), ``revive``, ``crash`` the workload,
        ``impersonate`` (answers as ``server_id``), ``rotate`` (expects ``token`` from now on); each with ``vmid``."""
        vmid = arguments.get("vmid")
        container = self._world.containers.get(vmid) if isinstance(vmid, int) else None
        if not isinstance(vmid, int) or container is None or container.agent is None:
            raise PartError(f"vmid: no container with an agent has {vmid!r}")
        agent = container.agent
        if op == "kill":
            agent.alive = False
        elif op == "freeze":
            agent.frozen = True
        elif op == "revive":
            agent.alive, agent.frozen, agent.claims = True, False, None
        elif op == "crash":
            await self._crash(vmid, str(arguments.get("reason", "out_of_memory")))
        elif op == "impersonate":
            agent.claims = str(arguments.get("server_id", "somebody-else"))
        elif op == "rotate":
            agent.token, agent.previous_token = str(arguments.get("token", "")), None
        else:
            raise PartError(f"op: {op!r} is none of kill, freeze, revive, crash, impersonate, rotate")
        await self._world.changed(vmid)
        return {"vmid": vmid, "alive": agent.alive, "frozen": agent.frozen, "workload": agent.workload}

    async def _crash(self, vmid: int, reason: str) -> None:
        seat = self._seats.get(vmid)
        if seat is None or seat.workload is None or not seat.up:
            raise PartError(f"vmid: nothing runs in {vmid}")
        await seat.workload.crash(reason)
