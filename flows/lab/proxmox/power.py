"""Start, stop, shutdown, reboot. Whether it runs is checked at once; whether it is locked, in the task."""

from __future__ import annotations

from typing import Any

from flows.lab.proxmox.errors import PveError, TaskError
from flows.lab.proxmox.params import BOOL, COUNT
from flows.lab.proxmox.routing import Call, route
from flows.lab.proxmox.tasks import Task
from flows.lab.world import LabContainer

_POWER = ("/vms/{vmid}", "VM.PowerMgmt")
_AT = "/nodes/{node}/lxc/{vmid}/status/"


def _skip_lock(call: Call) -> bool:
    if call.params.get("skiplock") and not call.identity.root:
        raise PveError.parameters(skiplock="Only root may use this option.")
    return bool(call.params.get("skiplock"))


async def _runs(call: Call) -> bool:
    """As the node sees it: by its processes, so that an unknown VMID is simply not running."""
    container = call.cluster.world.containers.get(call.vmid)
    if container is None or container.node != call.node:
        return False
    await call.cluster.refresh([container])
    return container.status == "running"


async def _must_run(call: Call, kind: str = "CT") -> None:
    if not await _runs(call):
        raise PveError(500, f"{kind} {call.vmid} not running")


async def _begin(call: Call, task: Task, seconds: float) -> LabContainer:
    container = call.container()
    await task.work(seconds)
    await call.cluster.substance.start(container)
    container.start()
    await call.changed()
    return container


@route("POST", _AT + "start", _POWER, params={"debug": BOOL, "skiplock": BOOL})
async def start(call: Call) -> Any:
    skip = _skip_lock(call)
    if await _runs(call):
        raise PveError(500, f"CT {call.vmid} already running")

    async def body(task: Task) -> None:
        async with call.cluster.config_lock(call.vmid):
            container = call.container()
            if container.template:
                raise TaskError("you can't start a CT if it's a template")
            if not skip:
                call.cluster.check_lock(container, "mounted")
            if container.status == "running":
                raise TaskError(f"CT {call.vmid} already running")
            await _begin(call, task, call.cluster.times.start_s)

    return call.spawn("vzstart", body)


async def _end(call: Call, task: Task, seconds: float, *, skip_lock: bool, timeout_s: float | None = None, force: bool = False) -> LabContainer:
    """By its init within ``timeout_s``, or at once (None). ``force``: at once when the time is over. Raises TaskError."""
    container = call.container()
    if not skip_lock:
        call.cluster.check_lock(container, "mounted")
    await task.work(seconds)
    substance = call.cluster.substance
    if timeout_s is None:
        await substance.stop(container)
    elif not await substance.shutdown(container, timeout_s):
        if not force:
            raise TaskError("container did not stop")
        await substance.stop(container)
    container.stop()
    await call.changed()
    return container


@route("POST", _AT + "stop", _POWER, params={"skiplock": BOOL, "overrule-shutdown": BOOL})
async def stop(call: Call) -> Any:
    skip = _skip_lock(call)
    await _must_run(call)
    if call.params.get("overrule-shutdown"):
        for task in call.cluster.tasks.running("vzshutdown", str(call.vmid)):
            if task.job is not None:
                task.job.cancel()

    async def body(task: Task) -> None:
        async with call.cluster.config_lock(call.vmid):
            await _end(call, task, call.cluster.times.stop_s, skip_lock=skip)

    return call.spawn("vzstop", body)


@route("POST", _AT + "shutdown", _POWER, params={"timeout": COUNT, "forceStop": BOOL})
async def shutdown(call: Call) -> Any:
    await _must_run(call)
    limit = call.params.get("timeout", 60)

    async def body(task: Task) -> None:
        async with call.cluster.config_lock(call.vmid):
            needed = call.cluster.times.shutdown_s
            if needed > limit and not call.params.get("forceStop"):
                call.cluster.check_lock(call.container())
                await task.work(float(limit))
                raise TaskError("container did not stop")
            await _end(call, task, min(needed, float(limit)), skip_lock=False, timeout_s=float(limit), force=bool(call.params.get("forceStop")))

    return call.spawn("vzshutdown", body)


@route("POST", _AT + "reboot", _POWER, params={"timeout": COUNT})
async def reboot(call: Call) -> Any:
    await _must_run(call, "VM")

    async def body(task: Task) -> None:
        async with call.cluster.config_lock(call.vmid):
            await _end(call, task, call.cluster.times.shutdown_s, skip_lock=False, timeout_s=float(call.params.get("timeout", 60)))
            await _begin(call, task, call.cluster.times.start_s)

    return call.spawn("vzreboot", body)
