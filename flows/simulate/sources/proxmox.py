"""Proxmox's port. The rights are asked as the real client asks them, by its own code: a token that lost them gets an empty list with 200."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from flows.clients.proxmox import rights
from flows.domain.ports import CloneSpec, ContainerSpec
from flows.domain.sources import Container, ContainerConfig, ProxmoxView, RunningTask, TaskStatus
from flows.errors import Busy, Conflict, DeadlineExceeded, TaskFailed, Temporary, Unproven, Unreachable
from flows.simulate.loop import here
from flows.simulate.world import OUR_USER, Machine, World

T = TypeVar("T")

#: Seconds per call.
LIMIT_S = 30.0
_FULL: rights.Rights = {path: dict.fromkeys(sorted(wanted), True) for path, wanted in rights.LEAST_RIGHTS.items()}
_NONE: rights.Rights = {"/": {"Sys.Audit": True}, "/vms": {}}


class Proxmox:
    """``poll_s``: seconds between two looks at a running task."""

    def __init__(self, world: World, poll_s: float = 2.0) -> None:
        self.w, self._poll_s = world, poll_s
        self._view: tuple[int, dict[int, Container]] = (-1, {})

    async def _ask(self, verb: str, target: object, answer: Callable[[], T]) -> T:
        """A read: tried again once."""
        try:
            return await self.w.wire.call("proxmox", verb, str(target), answer, write=False, limit_s=LIMIT_S)
        except Unreachable:
            return await self.w.wire.call("proxmox", verb, str(target), answer, write=False, limit_s=LIMIT_S)

    async def _order(self, verb: str, target: object, effect: Callable[[], T]) -> T:
        return await self.w.wire.call("proxmox", verb, str(target), effect, write=True, limit_s=LIMIT_S)

    def _trust(self, what: str) -> None:
        """At the moment of the answer. Raises Unproven."""
        trouble = self.w.wire.trouble("proxmox")
        rights.require(_NONE if trouble.lying else _FULL, what, OUR_USER)
        if trouble.partial:
            raise Unproven(what, why="the cluster is not quorate")

    # Reading

    async def view(self) -> ProxmoxView:
        process = here()

        def answer() -> ProxmoxView:
            w = self.w
            lied_to = w.wire.trouble("proxmox").lying or w.wire.trouble("proxmox").partial
            if process is not None:
                process.told["lied to"] = bool(lied_to)
            self._trust("the fleet's containers")
            if self._view[0] != w.version:
                self._view = (w.version, {vmid: _container(w, m) for vmid, m in sorted(w.machines.items()) if vmid not in w.hidden})
            tasks = tuple(RunningTask(t.upid, t.node, t.kind, t.vmid, t.user) for t in w.running_tasks())
            hidden = w.wire.trouble("proxmox").lying
            containers = {} if hidden else self._view[1]
            if process is not None:
                process.told["containers"] = {vmid: container.status for vmid, container in containers.items()}
            return ProxmoxView(dict(containers), dict(w.nodes), () if hidden else tasks, frozenset(w.twins), dict(w.stops))

        return await self._ask("view", "", answer)

    async def config(self, node: str, vmid: int) -> ContainerConfig:
        def answer() -> ContainerConfig:
            m = self._there(node, vmid)
            return ContainerConfig(vmid, m.description, m.tags, m.lock, "", {"hostname": m.name})

        return await self._ask("config", vmid, answer)

    async def status(self, node: str, vmid: int) -> str:
        return await self._ask("status", vmid, lambda: self._there(node, vmid).status)

    def _there(self, node: str, vmid: int) -> Machine:
        if not self.w.nodes.get(node, False):
            raise Unreachable(f"Proxmox: container {vmid}", why=f"no route to node {node} (595)")
        return self.w.machine(vmid, node)

    async def proven_absent(self, vmid: int, *, template_vmid: int | None = None) -> bool:
        what = f"absence of {vmid}"

        def answer() -> bool:
            self._trust(what)
            for task in self.w.running_tasks():
                if task.vmid == vmid or task.into == vmid:
                    raise Unproven(what, why=f"a {task.kind} of it is running")
                if task.kind == "vzclone" and template_vmid in (None, task.vmid):
                    raise Unproven(what, why=f"a clone of {task.vmid} is running and may be making it")
            return vmid not in self.w.machines

        return await self._ask("nextid", vmid, answer)

    async def where(self, vmid: int) -> tuple[str, str] | None:
        def answer() -> tuple[str, str] | None:
            self._trust(f"whereabouts of {vmid}")
            m = self.w.machines.get(vmid)
            return None if m is None else ("lxc", m.node)

        return await self._ask("where", vmid, answer)

    async def task(self, upid: str) -> TaskStatus:
        return await self._ask("task", upid, lambda: self._task(upid))

    def _task(self, upid: str) -> TaskStatus:
        task = self.w.tasks.get(upid)
        if task is None:
            raise Unproven(f"task {upid}", why="its node does not know it")
        if not self.w.nodes.get(task.node, False):
            raise Unreachable(f"task {upid}", why=f"no route to node {task.node}")
        if not task.finished:
            return TaskStatus(upid, finished=False, ok=False)
        return TaskStatus(upid, True, task.exitstatus == "OK", task.exitstatus)

    async def tasks_of(self, vmid: int) -> Sequence[TaskStatus]:
        def answer() -> Sequence[TaskStatus]:
            self._trust(f"running tasks of {vmid}")
            return [TaskStatus(t.upid, finished=False, ok=False) for t in self.w.running_tasks() if t.vmid == vmid]

        return await self._ask("tasks", vmid, answer)

    async def clone_tasks(self, node: str, template_vmid: int, since_s: int) -> Sequence[tuple[str, bool]]:
        def answer() -> Sequence[tuple[str, bool]]:
            found = [t for t in self.w.tasks.values() if t.kind == "vzclone" and t.vmid == template_vmid and t.node == node]
            return sorted((t.upid, not t.finished) for t in found if t.user == OUR_USER)

        return await self._ask("clones", template_vmid, answer)

    async def cloning(self, node: str) -> Sequence[str]:
        return await self._ask("cloning", node, lambda: [t.upid for t in self.w.running_tasks() if t.kind == "vzclone" and t.node == node])

    async def doctor(self) -> Mapping[str, object]:
        return {}

    # Writing

    async def clone(self, spec: CloneSpec) -> str:
        process, sent = here(), self.w.loop.time()

        def effect() -> str:
            w = self.w
            if not w.nodes.get(spec.node, False):
                raise Unreachable(f"Proxmox: clone to {spec.vmid}", why="no route to its node")
            if spec.vmid in w.machines:
                raise Conflict(f"clone to {spec.vmid}", why=f"unable to create CT {spec.vmid} - CT {spec.vmid} already exists on node '{spec.node}'")
            half = Machine(spec.vmid, spec.node, "stopped", spec.hostname, lock="create", made_at=w.loop.time())
            w.machines[spec.vmid] = half
            w.version += 1
            w.effect("proxmox", "clone", str(spec.vmid), "", process, None, sent=sent)

            def end() -> str:
                if w.machines.get(spec.vmid) is not half:
                    return "the container is gone"
                half.lock, half.description = None, spec.description
                w.version += 1
                return "OK"

            def broke() -> None:
                """Proxmox removes what a clone that failed has made."""
                if w.machines.get(spec.vmid) is half:
                    w.remove(half)

            return w.task("vzclone", spec.template_vmid, spec.node, w.wait(8, 40, "clone", spec.vmid), end, into=spec.vmid, broke=broke)

        return await self._order("clone", spec.vmid, effect)

    async def configure(self, node: str, vmid: int, spec: ContainerSpec) -> str | None:
        process, sent = here(), self.w.loop.time()

        def effect() -> None:
            m = self._free(node, vmid)
            address = spec.address_cidr.partition("/")[0]
            changed = m.tags != spec.tags or m.address != address
            m.tags, m.address = spec.tags, address
            self.w.addresses[address] = vmid
            self.w.version += 1
            self.w.effect("proxmox", "configure", str(vmid), m.owner(), process, None, changed=changed, sent=sent)

        await self._order("configure", vmid, effect)
        return None

    def _free(self, node: str, vmid: int) -> Machine:
        m = self._there(node, vmid)
        if m.lock is not None:
            raise Busy(f"container {vmid}", why=f"CT is locked ({m.lock})", retry_after=2.0)
        return m

    async def start(self, node: str, vmid: int) -> str | None:
        process, sent = here(), self.w.loop.time()

        def effect() -> str | None:
            m = self._free(node, vmid)
            if m.status == "running":
                return None
            self.w.effect("proxmox", "start", str(vmid), m.owner(), process, None, sent=sent)

            def end() -> str:
                if self.w.machines.get(vmid) is not m:
                    return f"CT {vmid} does not exist"
                if m.status != "running":
                    self.w.boot(m)
                return "OK"

            return self.w.task("vzstart", vmid, node, self.w.wait(1, 4, "vzstart", vmid, m.boot), end)

        return await self._order("start", vmid, effect)

    async def _end(self, verb: str, node: str, vmid: int, low: float, high: float) -> str | None:
        process, sent = here(), self.w.loop.time()

        def effect() -> str | None:
            m = self._free(node, vmid)
            if m.status != "running":
                return None
            self.w.effect("proxmox", verb, str(vmid), m.owner(), process, None, sent=sent)

            def end() -> str:
                if self.w.machines.get(vmid) is not m:
                    return f"CT {vmid} does not exist"
                self.w.halt(m)
                return "OK"

            return self.w.task(f"vz{verb}", vmid, node, self.w.wait(low, high, verb, vmid, m.boot), end)

        return await self._order(verb, vmid, effect)

    async def stop(self, node: str, vmid: int) -> str | None:
        return await self._end("stop", node, vmid, 1, 4)

    async def shutdown(self, node: str, vmid: int, timeout_s: int) -> str | None:
        return await self._end("shutdown", node, vmid, 2, 20)

    async def destroy(self, node: str, vmid: int) -> str:
        process, sent = here(), self.w.loop.time()

        def effect() -> str:
            m = self._there(node, vmid)
            if m.status == "running":
                raise Conflict(f"destruction of {vmid}", why=f"CT {vmid} is running - destroy failed!")
            self.w.effect("proxmox", "destroy", str(vmid), m.owner(), process, None, sent=sent)

            def end() -> str:
                if self.w.machines.get(vmid) is not m:
                    return f"CT {vmid} does not exist"
                self.w.remove(m)
                return "OK"

            return self.w.task("vzdestroy", vmid, node, self.w.wait(2, 8, "destroy", vmid, m.boot), end)

        return await self._order("destroy", vmid, effect)

    async def wait(self, upid: str, deadline_s: float) -> TaskStatus:
        began = self.w.loop.time()
        trouble: Temporary | None = None
        while True:
            status: TaskStatus | None = None
            try:
                status = await self.w.wire.call("proxmox", "task", upid, lambda: self._task(upid), write=False, limit_s=LIMIT_S)
                trouble = None
            except Unproven as error:
                if self.w.loop.time() - began > 15:
                    raise
                trouble = error
            except Temporary as error:
                trouble = error
            if status is not None and status.finished:
                return self._ended(status)
            if self.w.loop.time() - began > deadline_s:
                raise trouble if isinstance(trouble, Unproven) else DeadlineExceeded(f"task {upid}", why="still running")
            await self.w.loop.nap(self._poll_s)

    @staticmethod
    def _ended(status: TaskStatus) -> TaskStatus:
        if status.ok:
            return status
        if status.exitstatus.startswith("unexpected"):
            raise Unproven(f"task {status.upid}", why="it ended with an unexpected status: nobody knows how")
        raise TaskFailed(f"task {status.upid}", why=status.exitstatus)


def _container(world: World, m: Machine) -> Container:
    online = world.nodes.get(m.node, False)
    return Container(m.vmid, m.node, m.status if online else "unknown", m.name, m.tags, m.lock)
