"""The truth: nodes, containers, agents, the bridge, the zone, Proxmox's tasks, channels. Receivers are plain functions, called at the moment
at which something arrives; time passes by the loop. Whoever changes it says who: invariants hear of every effect.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from flows.act.ownership import operation_mark, server_tag
from flows.domain.agent import WorkloadState
from flows.domain.sources import OUR_TAG, Record, Registration
from flows.errors import AutomationError, Busy, Conflict, Fenced, NotFound
from flows.simulate.keyed import draw
from flows.simulate.loop import Process, VirtualLoop
from flows.simulate.wire import Wire

OUR_USER = "zlh@pve!autopilot"
PERSON = "root@pam"


@dataclass(slots=True)
class Effect:
    """Something changed (or was asked to) at a receiver. ``process`` None: the world's own doing, or a person's."""

    at: float
    source: str
    verb: str
    target: str
    server_id: str
    process: Process | None
    token: int | None = None
    changed: bool = True
    sent: float = 0.0


@dataclass(slots=True)
class Machine:
    """A container and what lives in it. ``boot`` numbers its boots: what belongs to an older one comes to nothing."""

    vmid: int
    node: str
    status: str = "stopped"
    name: str = ""
    description: str = ""
    tags: frozenset[str] = frozenset()
    lock: str | None = None
    address: str = ""
    made_at: float = 0.0
    boot: int = 0
    up: bool = False  # its address answers
    server_id: str = ""  # what its agent says that it is
    agent: bool = False  # deployed
    agent_up: bool = False
    agent_broken: bool = False  # neither a boot nor anything but a deployment or restart of its service mends it
    dev: bool = False
    state: WorkloadState = WorkloadState.STOPPED
    ready: bool = False
    wanted: bool = False  # what its agent was told last
    since: float = 0.0
    restarts: int = 0
    seen: int = 0  # the highest lease token that its agent met
    job: str | None = None
    crashes: int = 0
    broken: bool = False  # the workload ends in error however often it is started
    slow: bool = False  # starts take ten times as long
    liar: str = ""  # what its agent answers instead of its own identity

    def owner(self) -> str:
        """The server whose marks it carries; empty for none."""
        return next((tag.removeprefix("zlh-srv-") for tag in self.tags if tag.startswith("zlh-srv-")), "")

    def ours(self) -> bool:
        return bool(self.owner()) or OUR_TAG in self.tags or self.description.startswith("zlh-op-")


@dataclass(slots=True)
class Task:
    """A task of Proxmox."""

    upid: str
    node: str
    kind: str
    vmid: int
    user: str
    started: float
    into: int = 0
    finished: bool = False
    exitstatus: str = ""


@dataclass
class Post:
    """A message that a channel got."""

    at: float
    channel: str
    key: str
    ping: bool
    text: str


Heard = Callable[[Effect], None]


@dataclass
class World:
    loop: VirtualLoop
    seed: int
    wire: Wire
    nodes: dict[str, bool] = field(default_factory=dict)  # online or not
    machines: dict[int, Machine] = field(default_factory=dict)
    twins: list[int] = field(default_factory=list)  # VMIDs that two guests share
    hidden: set[int] = field(default_factory=set)  # containers that Proxmox's list leaves out, and nothing else
    failing: list[str] = field(default_factory=list)  # kinds of our tasks of which the next one is taken and fails; "" any
    addresses: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    stops: dict[int, str] = field(default_factory=dict)
    registrations: dict[str, Registration] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    zone: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    posts: list[Post] = field(default_factory=list)
    heard: Heard = lambda effect: None
    version: int = 0  # of containers, for who keeps a list of them
    zone_version: int = 0
    agents_fence: bool = True
    bridge_fences: bool = True
    numbers: int = 0  # of tasks and strangers: by what happens in the world, not by how the loop does it

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    # Who hears of it

    def effect(self, source: str, verb: str, target: str, server_id: str, process: Process | None, token: int | None = None, **more: object) -> None:
        self.heard(Effect(self.loop.time(), source, verb, target, server_id, process, token, **more))  # type: ignore[arg-type]  # changed, sent

    def wait(self, low: float, high: float, *key: object) -> float:
        return low + (high - low) * draw(self.seed, "world", *key)

    # Machines

    def machine(self, vmid: int, node: str = "") -> Machine:
        found = self.machines.get(vmid)
        if found is None or (node and found.node != node):
            raise NotFound(f"container {vmid}", why=f"Configuration file 'nodes/{node}/lxc/{vmid}.conf' does not exist")
        return found

    def at_address(self, address: str) -> Machine | None:
        """The machine that answers there now."""
        vmid = self.addresses.get(address)
        found = self.machines.get(vmid) if vmid is not None else None
        if found is None or found.status != "running" or not found.up or not self.nodes.get(found.node, False):
            return None
        return found

    def at_node(self, vmid: int, node: str) -> Machine | None:
        """The container that its node would enter."""
        found = self.machines.get(vmid)
        return found if found is not None and found.node == node and found.status == "running" and self.nodes.get(node, False) else None

    def agent_back(self, machine: Machine) -> None:
        """The agent's service begins anew. The game outlives it; one that ended with its container is started again."""
        machine.agent_broken = False
        if not machine.up or machine.status != "running" or not self.nodes.get(machine.node, False):
            return
        machine.agent_up = machine.agent
        if machine.agent_up and machine.wanted and not machine.dev and machine.state is WorkloadState.STOPPED:
            self.start_workload(machine)

    def boot(self, machine: Machine) -> None:
        machine.status, machine.up = "running", False
        machine.boot += 1
        boot = machine.boot
        self.version += 1
        self.effect("agents", "boot", machine.name, machine.server_id, None)
        self.loop.after(self.wait(2, 6, "boot", machine.vmid, boot), self._booted, machine, boot)

    def _booted(self, machine: Machine, boot: int) -> None:
        if machine.boot != boot or machine.status != "running":
            return
        machine.up = True
        if machine.agent and not machine.agent_broken:
            machine.agent_up = True
        if machine.dev:
            machine.state, machine.ready, machine.since = WorkloadState.RUNNING, machine.agent, self.loop.time()
        elif machine.wanted and machine.agent_up:
            self.start_workload(machine)

    def halt(self, machine: Machine) -> None:
        machine.status, machine.up, machine.agent_up, machine.ready = "stopped", False, False, False
        machine.boot += 1
        machine.job = None
        machine.state = WorkloadState.STOPPED
        self.version += 1
        self.effect("agents", "halt", machine.name, machine.server_id, None)

    def remove(self, machine: Machine) -> None:
        self.halt(machine)
        self.machines.pop(machine.vmid, None)
        if self.addresses.get(machine.address) == machine.vmid:
            del self.addresses[machine.address]
        self.version += 1

    def node_down(self, node: str) -> None:
        self.nodes[node] = False
        for machine in self.machines.values():
            if machine.node == node and machine.status == "running":
                machine.up = machine.agent_up = machine.ready = False
                machine.job, machine.state = None, WorkloadState.STOPPED
                machine.boot += 1
        self.version += 1

    def node_up(self, node: str) -> None:
        self.nodes[node] = True
        for machine in self.machines.values():
            if machine.node == node and machine.status == "running":
                self.boot(machine)
        self.version += 1

    # Workloads

    def start_workload(self, machine: Machine) -> None:
        machine.wanted, machine.state, machine.ready = True, WorkloadState.STARTING, False
        machine.restarts += 1
        machine.since = self.loop.time()
        machine.job = f"start-{machine.restarts}"
        takes = self.wait(10, 45, "start", machine.vmid, machine.restarts) * (10 if machine.slow else 1)
        self.loop.after(takes, self._started, machine, machine.boot, machine.restarts)

    def _started(self, machine: Machine, boot: int, number: int) -> None:
        if machine.boot != boot or machine.restarts != number or machine.state is not WorkloadState.STARTING:
            return
        machine.job = None
        if machine.broken:
            machine.state, machine.ready = WorkloadState.ERROR, False
            machine.crashes += 1
            return
        machine.state, machine.ready, machine.since = WorkloadState.RUNNING, True, self.loop.time()

    def stop_workload(self, machine: Machine) -> None:
        if machine.state in (WorkloadState.STOPPED, WorkloadState.STOPPING):
            machine.wanted = False
            return
        machine.wanted, machine.state, machine.ready = False, WorkloadState.STOPPING, False
        machine.restarts += 1
        machine.job = f"stop-{machine.restarts}"
        self.loop.after(self.wait(2, 12, "stop", machine.vmid, machine.restarts), self._stopped, machine, machine.boot, machine.restarts)

    def _stopped(self, machine: Machine, boot: int, number: int) -> None:
        if machine.boot == boot and machine.restarts == number and machine.state is WorkloadState.STOPPING:
            machine.state, machine.job = WorkloadState.STOPPED, None

    def crash(self, machine: Machine, *, recovers: bool) -> None:
        """The game ends by itself. Its supervisor starts it again, or gives up."""
        if machine.state is not WorkloadState.RUNNING or not machine.agent_up or machine.dev:
            return
        machine.ready = False
        machine.crashes += 1
        machine.since = self.loop.time()
        if recovers:
            self.start_workload(machine)
        else:
            machine.state, machine.wanted = WorkloadState.ERROR, False
            machine.restarts += 1

    # The agent as receiver

    def order(self, machine: Machine, verb: str, token: int, process: Process | None, sent: float) -> None:
        """``start``, ``stop`` or ``restart``. Raises Fenced, Busy."""
        if token < machine.seen and self.agents_fence:
            raise Fenced(f"agent of {machine.name}", why=f"token {token} is lower than {machine.seen}")
        stale = token < machine.seen
        if machine.job is not None and verb not in ("stop", machine.job.partition("-")[0]):
            raise Busy(f"agent of {machine.name}", why=f"job {machine.job} is under way", retry_after=2.0)
        machine.seen = max(machine.seen, token)
        changed = True
        if verb == "start":
            changed = machine.state not in (WorkloadState.RUNNING, WorkloadState.STARTING)
            if changed:
                self.start_workload(machine)
        elif verb == "stop":
            changed = machine.state not in (WorkloadState.STOPPED, WorkloadState.STOPPING)
            self.stop_workload(machine)
        else:
            self.start_workload(machine)
            machine.job = f"restart-{machine.restarts}"
        self.effect("agents", verb + ("!" if stale else ""), machine.name, machine.server_id, process, token, changed=changed, sent=sent)

    # The bridge as receiver

    def register(self, name: str, entry: Registration, token: int, server_id: str, process: Process | None, sent: float) -> None:
        stale = self._bridge_fence(name, token)
        changed = self.registrations.get(name) != entry
        self.registrations[name] = entry
        self.effect("proxy", "register" + stale, name, server_id, process, token, changed=changed, sent=sent)

    def deregister(self, name: str, token: int, server_id: str, process: Process | None, sent: float) -> None:
        stale = self._bridge_fence(name, token)
        changed = self.registrations.pop(name, None) is not None
        self.effect("proxy", "deregister" + stale, name, server_id, process, token, changed=changed, sent=sent)

    def _bridge_fence(self, name: str, token: int) -> str:
        seen = self.fences.get(name, 0)
        if token < seen and self.bridge_fences:
            raise Fenced(f"registration of {name}", why=f"token {token} is lower than {seen}")
        self.fences[name] = max(seen, token)
        return "!" if token < seen else ""

    def rehydrate(self, entries: dict[str, tuple[Registration, int]], leave: Collection[str], process: Process | None, sent: float) -> None:
        kept = {name: entry for name, entry in self.registrations.items() if name in leave}
        fresh = {name: entry for name, (entry, token) in entries.items() if name not in leave and token >= self.fences.get(name, 0)}
        for name, (_, token) in entries.items():
            self.fences[name] = max(self.fences.get(name, 0), token)
        after = fresh | kept
        changed = after != self.registrations
        self.registrations = after
        self.effect("proxy", "rehydrate", "", "", process, None, changed=changed, sent=sent)

    # The zone as receiver

    def change_zone(
        self, what: str, labels: Mapping[str, tuple[Record, ...]], verb: str, server_id: str, process: Process | None, sent: float
    ) -> None:
        """``labels``: what each of these labels holds from now on."""
        changed = any(self.zone.get(label, ()) != records for label, records in labels.items())
        for label, records in labels.items():
            if records:
                self.zone[label] = records
            else:
                self.zone.pop(label, None)
        self.zone_version += 1
        self.effect("dns", verb, what, server_id, process, None, changed=changed, sent=sent)

    def require(self, name: str, now: tuple[Record, ...], seen: tuple[Record, ...]) -> None:
        """A prerequisite of an update. Raises Conflict."""
        if {(r.name, r.rtype, r.value) for r in now} != {(r.name, r.rtype, r.value) for r in seen}:
            raise Conflict(f"DNS: {name}", why="it was changed meanwhile")

    # Proxmox as receiver

    def task(
        self,
        kind: str,
        vmid: int,
        node: str,
        takes: float,
        end: Callable[[], str],
        user: str = OUR_USER,
        into: int = 0,
        broke: Callable[[], None] = lambda: None,
    ) -> str:
        """A task that ends after ``takes`` seconds with what ``end`` returns as its exit status; ``broke`` is what it leaves where it fails."""
        number = self.number()
        upid = f"UPID:{node}:{number:08X}:{number:08X}:{int(self.loop.time()):08X}:{kind}:{vmid}:{user}:"
        task = self.tasks[upid] = Task(upid, node, kind, vmid, user, self.loop.time(), into)
        if kind in ("vzstop", "vzshutdown"):
            self.stops[vmid] = user

        fails = next((wanted for wanted in self.failing if kind.startswith(wanted)), None) if user == OUR_USER else None
        if fails is not None:
            self.failing.remove(fails)

        def finish() -> None:
            try:
                if fails is not None:
                    broke()
                    self.effect("proxmox", f"{kind} failed", str(into or vmid), "", None)
                task.exitstatus = end() if fails is None else "command failed: exit code 1"
            except AutomationError as error:
                task.exitstatus = error.why or str(error)
            task.finished = True

        self.loop.after(takes, finish)
        if len(self.tasks) > 400:
            old = self.loop.time() - 7200
            self.tasks = {k: v for k, v in self.tasks.items() if not v.finished or v.started > old}
        return upid

    def running_tasks(self) -> list[Task]:
        return [task for task in self.tasks.values() if not task.finished]

    # Marks

    def born(self, vmid: int, node: str, server_id: str, operation_id: str, name: str, address: str, *, dev: bool = False) -> Machine:
        """A container that was ours before the simulation began, up and serving."""
        tags = frozenset({OUR_TAG, server_tag(server_id), operation_mark(operation_id)})
        machine = Machine(vmid, node, "running", name, tags=tags, address=address)
        machine.up = machine.agent = machine.agent_up = machine.ready = machine.wanted = True
        machine.server_id, machine.dev, machine.state = server_id, dev, WorkloadState.RUNNING
        self.machines[vmid] = machine
        self.addresses[address] = vmid
        self.version += 1
        return machine
