"""A world in memory behind the ports: containers, agents, proxy, zone, engine, playbooks. Calls are noted; each can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from flows.act.deps import Deps, Identity
from flows.domain.agent import AgentStatus, WorkloadState
from flows.domain.event import Channel, Event, Route, Severity
from flows.domain.finding import Action, Check, Finding
from flows.domain.known import Known, Unknown
from flows.domain.ports import Artifact, CloneSpec, ContainerSpec, Play, PlayResult
from flows.domain.server import Server
from flows.domain.sources import ContainerConfig, EngineRun, ProxmoxView, ProxyView, Record, Registration, TaskStatus, ZoneView
from flows.errors import NotFound
from flows.settings import Settings
from flows.state.database import Database

HASTE = {
    "heartbeat_s": 0.2, "lease_s": 2.0, "call_s": 0.5, "margin_s": 0.2, "epoch_s": 2.0, "epoch_renew_s": 0.2, "observe_s": 1.0,
    "sweep_limit_s": 20.0, "ready_poll_s": 0.01, "step_factor": 0.02,
}  # fmt: skip


def settings(**timing: float) -> Settings:
    """Times of a test; ``timing`` overrides single ones."""
    network = {"pool": "127.0.0.0/8", "gateway": "127.0.0.1"}
    return Settings.model_validate({"timing": HASTE | timing, "network": network, "ansible": {"forwarding_secret": "of the tests"}})


@dataclass
class Container:
    status: str = "stopped"
    description: str = ""
    tags: frozenset[str] = frozenset()
    lock: str | None = None
    node: str = ""  # empty: wherever it is looked for


@dataclass
class World:
    """``before[name]`` and ``after[name]``: what the next calls of that name raise, before or after their effect. A callable is awaited."""

    containers: dict[int, Container] = field(default_factory=dict)
    raw: dict[int, dict[str, object]] = field(default_factory=dict)
    last_crash: Mapping[str, object] | None = None
    workload: WorkloadState = WorkloadState.STOPPED
    uptime_s: float = 0.0
    forgets: int = 0  # orders that the agent will accept and lose
    agent_version: str = ""
    registrations: dict[str, Registration] = field(default_factory=dict)
    backends: dict[str, Registration] = field(default_factory=dict)
    records: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    runs: dict[str, EngineRun] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    before: dict[str, list[Any]] = field(default_factory=dict)
    after: dict[str, list[Any]] = field(default_factory=dict)

    async def hit(self, name: str, effect: Callable[[], Any] | None = None) -> Any:
        self.calls.append(name)
        await self._trouble(self.before, name)
        result = effect() if effect is not None else None
        await self._trouble(self.after, name)
        return result

    async def _trouble(self, armed: dict[str, list[Any]], name: str) -> None:
        await asyncio.sleep(0)
        if armed.get(name):
            trouble = armed[name].pop(0)
            if isinstance(trouble, BaseException):
                raise trouble
            if trouble is not None:
                await trouble()

    def times(self, name: str) -> int:
        return self.calls.count(name)


class Proxmox:
    def __init__(self, world: World) -> None:
        self.w = world

    def _of(self, vmid: int, node: str = "") -> Container:
        if vmid not in self.w.containers or (node and self.w.containers[vmid].node not in ("", node)):
            raise NotFound(f"container {vmid}", why="does not exist")
        return self.w.containers[vmid]

    async def view(self) -> ProxmoxView:
        await self.w.hit("view")
        return ProxmoxView(containers={}, nodes_online={"pve1": True})

    async def config(self, node: str, vmid: int) -> ContainerConfig:
        await self.w.hit("config")
        c = self._of(vmid, node)
        return ContainerConfig(vmid, c.description, c.tags, c.lock, "", self.w.raw.get(vmid, {}))

    async def status(self, node: str, vmid: int) -> str:
        await self.w.hit("status")
        return self._of(vmid, node).status

    async def proven_absent(self, vmid: int, *, template_vmid: int | None = None) -> bool:
        return bool(await self.w.hit("proven_absent", lambda: vmid not in self.w.containers))

    async def task(self, upid: str) -> TaskStatus:
        return TaskStatus(upid, True, True, "OK")

    async def tasks_of(self, vmid: int) -> Sequence[TaskStatus]:
        return []

    async def clone_tasks(self, node: str, template_vmid: int, since_s: int) -> Sequence[tuple[str, bool]]:
        return []

    async def where(self, vmid: int) -> tuple[str, str] | None:
        return ("lxc", self.w.containers[vmid].node or "pve1") if vmid in self.w.containers else None

    async def cloning(self, node: str) -> Sequence[str]:
        return []

    async def doctor(self) -> Mapping[str, object]:
        return {}

    async def clone(self, spec: CloneSpec) -> str:
        def effect() -> str:
            self.w.containers[spec.vmid] = Container(description=spec.description)
            return f"UPID:{spec.node}:1:1:1:vzclone:{spec.template_vmid}:zlh@pve!autopilot:"

        return str(await self.w.hit("clone", effect))

    async def configure(self, node: str, vmid: int, spec: ContainerSpec) -> str | None:
        def effect() -> None:
            self._of(vmid).tags = spec.tags

        await self.w.hit("configure", effect)
        return None

    async def _power(self, name: str, vmid: int, to: str) -> str:
        def effect() -> str:
            self._of(vmid).status = to
            return f"UPID:pve1:1:1:1:vz{name}:{vmid}:zlh@pve!autopilot:"

        return str(await self.w.hit(f"proxmox.{name}", effect))

    async def start(self, node: str, vmid: int) -> str | None:
        return await self._power("start", vmid, "running")

    async def stop(self, node: str, vmid: int) -> str | None:
        return await self._power("stop", vmid, "stopped")

    async def shutdown(self, node: str, vmid: int, timeout_s: int) -> str | None:
        return await self._power("shutdown", vmid, "stopped")

    async def destroy(self, node: str, vmid: int) -> str:
        def effect() -> str:
            self._of(vmid)
            del self.w.containers[vmid]
            return f"UPID:pve1:1:1:1:vzdestroy:{vmid}:zlh@pve!autopilot:"

        return str(await self.w.hit("destroy", effect))

    async def wait(self, upid: str, deadline_s: float) -> TaskStatus:
        await self.w.hit("wait")
        return TaskStatus(upid, True, True, "OK")


class Agents:
    def __init__(self, world: World) -> None:
        self.w = world

    async def probe(self, servers: Sequence[Server]) -> Mapping[str, Known[AgentStatus] | Unknown]:
        return {s.id: Known(await self.status(s)) for s in servers}

    async def status(self, server: Server) -> AgentStatus:
        await self.w.hit("agent.status")
        ready = self.w.workload is WorkloadState.RUNNING
        return AgentStatus(server.id, "0.1.0", self.w.workload, ready, uptime_s=self.w.uptime_s, last_crash=self.w.last_crash)

    async def health(self, server: Server) -> Mapping[str, object]:
        await self.w.hit("agent.health")
        return {"version": self.w.agent_version}

    async def ready(self, server: Server) -> tuple[bool, str]:
        await self.w.hit("agent.ready")
        return (True, "") if self.w.workload is WorkloadState.RUNNING else (False, f"it is {self.w.workload}")

    async def _order(self, name: str, to: WorkloadState) -> None:
        def effect() -> None:
            if self.w.forgets:
                self.w.forgets, to_now = self.w.forgets - 1, WorkloadState.STOPPED
            else:
                to_now = to
            self.w.workload, self.w.uptime_s = to_now, 0.0

        await self.w.hit(f"agent.{name}", effect)

    async def start(self, server: Server, token: int) -> None:
        await self._order("start", WorkloadState.RUNNING)

    async def stop(self, server: Server, token: int) -> None:
        await self._order("stop", WorkloadState.STOPPED)

    async def restart(self, server: Server, token: int) -> None:
        await self._order("restart", WorkloadState.RUNNING)


class Proxy:
    def __init__(self, world: World) -> None:
        self.w = world

    async def view(self) -> ProxyView:
        await self.w.hit("proxy.view")
        return ProxyView(dict(self.w.registrations))

    async def register(self, name: str, address: str, port: int, token: int) -> None:
        await self.w.hit("register", lambda: self.w.registrations.update({name: Registration(name, address, port)}))

    async def deregister(self, name: str, token: int) -> None:
        await self.w.hit("deregister", lambda: self.w.registrations.pop(name, None))

    async def rehydrate(self, leave: Collection[str] = ()) -> None:
        """Pulls ``World.backends``."""

        def effect() -> None:
            kept = {name: r for name, r in self.w.registrations.items() if name in leave}
            self.w.registrations = {name: r for name, r in self.w.backends.items() if name not in leave} | kept

        await self.w.hit("rehydrate", effect)


class Dns:
    def __init__(self, world: World) -> None:
        self.w = world

    async def zone(self) -> ZoneView:
        await self.w.hit("zone")
        return ZoneView(records=dict(self.w.records), owners=dict(self.w.owners))

    async def records(self, name: str) -> tuple[Record, ...]:
        return self.w.records.get(name, ())

    async def publish(self, name: str, wanted: Sequence[Record], owner: str, seen: Sequence[Record]) -> None:
        def effect() -> None:
            self.w.records[name], self.w.owners[name] = tuple(wanted), owner

        await self.w.hit("publish", effect)

    async def withdraw(self, name: str, owner: str, seen: Sequence[Record]) -> None:
        def effect() -> None:
            self.w.records.pop(name, None)
            self.w.owners.pop(name, None)

        await self.w.hit("withdraw", effect)


class Engine:
    def __init__(self, world: World) -> None:
        self.w = world

    async def submit(self, deployment: str, key: str, parameters: Mapping[str, object], queue: str) -> str:
        return "run"

    async def runs(self, keys: Sequence[str]) -> Mapping[str, EngineRun]:
        await self.w.hit("engine.runs")
        return {k: v for k, v in self.w.runs.items() if k in keys}

    async def cancel(self, run_id: str) -> None:
        await self.w.hit("engine.cancel")

    async def give_up(self, run_id: str, reason: str) -> None:
        await self.w.hit("engine.give_up")


class Runner:
    def __init__(self, world: World) -> None:
        self.w = world

    async def run(self, play: Play, on_event: Callable[[str], None] | None = None) -> PlayResult:
        def effect() -> PlayResult:
            if play.playbook == "deploy_agent.yml":
                self.w.agent_version = "0.1.0"
            return PlayResult(
                True, True, facts={"host_keys": {"ssh-ed25519": "AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"}}
            )

        result: PlayResult = await self.w.hit(play.playbook, effect)
        return result


def identity(server: Server) -> Identity:
    return Identity(SecretStr("token"), None, None, None)


async def artifact(kind: str, name: str, version: str) -> Artifact:
    return Artifact(kind, name, version or "1", "http://127.0.0.1/a", "00", 1, "promoted")


def route(event: Event, now: int) -> Route:
    return Route(Channel.AUDIT, False, Severity.INFO)


async def no_boundary(name: str) -> None:
    await asyncio.sleep(0)


def deps(database: Any, world: World, *, boundary: Callable[[str], Awaitable[None]] = no_boundary, holder: str = "me", **timing: float) -> Deps:
    """``database`` may stand in for a :class:`Database` that fails."""
    assert database is None or isinstance(database, Database) or hasattr(database, "write")
    return Deps(
        settings=settings(**timing),
        database=database,
        proxmox=Proxmox(world),
        agents=Agents(world),
        proxy=Proxy(world),
        dns=Dns(world),
        engine=Engine(world),
        runner=Runner(world),
        identity=identity,
        artifact=artifact,
        route=route,
        public_key=lambda: "ssh-ed25519 AAAA",
        holder=holder,
        boundary=boundary,
        abandon=lambda: world.calls.append("abandon"),
    )


def finding(server: Server, check: Check = Check.DNS_RECORD, action: Action = Action.PUBLISH_DNS, **changes: Any) -> Finding:
    wanted: dict[str, Any] = {"subject": server.id, "summary": f"{server.name}: no record", "level": 1, "server_id": server.id, "host": server.node}
    return Finding(check=check, action=action, **(wanted | changes))
