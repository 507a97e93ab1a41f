"""Snapshots: of the record, and of what stands behind it. A rollback stops the container first."""

from __future__ import annotations

import copy
import time
from collections.abc import Awaitable, Callable
from typing import Any

from flows.lab.proxmox import guest
from flows.lab.proxmox.errors import PveError, TaskDied, TaskError
from flows.lab.proxmox.params import BOOL, CONFIG_ID, TEXT
from flows.lab.proxmox.routing import Call, route
from flows.lab.proxmox.tasks import Body, Task
from flows.lab.world import LabContainer

_AT = "/nodes/{node}/lxc/{vmid}/snapshot"
_MAY = ("/vms/{vmid}", "VM.Snapshot")
_EITHER = ("/vms/{vmid}", "any", "VM.Snapshot", "VM.Snapshot.Rollback")


@route("GET", _AT, ("/vms/{vmid}", "VM.Audit"))
async def listing(call: Call) -> Any:
    container = call.container()
    found = [
        {"name": name, "description": snap["description"], "snaptime": snap["snaptime"], **({"parent": snap["parent"]} if snap["parent"] else {})}
        for name, snap in container.snapshots.items()
    ]
    newest = {"name": "current", "description": "You are here!", "running": int(container.status == "running"), "digest": guest.digest(container)}
    if container.parent:
        newest["parent"] = container.parent
    return [*found, newest]


@route("GET", _AT + "/{snapname}/config", ("/vms/{vmid}", "any", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.Audit"))
async def config(call: Call) -> Any:
    snap = _snapshot(call.container(), call.params["snapname"], PveError)
    return {**guest.described(call.container(), snap["config"]), "description": snap["description"], "snaptime": snap["snaptime"]}


def _snapshot(container: LabContainer, name: str, kind: type[PveError] | type[TaskError]) -> dict[str, Any]:
    if name not in container.snapshots:
        text = f"snapshot '{name}' does not exist"
        raise PveError(500, text) if kind is PveError else TaskError(text)
    return container.snapshots[name]


def _under(call: Call, lock: str, work: Callable[[LabContainer, Task], Awaitable[None]]) -> Body:
    """A task body that holds ``lock`` in the configuration while it works, and leaves it there only if its worker dies."""

    async def body(task: Task) -> None:
        async with call.cluster.config_lock(call.vmid):
            container = call.container()
            if container.template:
                raise TaskError("you can't take a snapshot if it's a template" if lock == "snapshot" else "you can't rollback if vm is a template")
            call.cluster.check_lock(container)
            container.lock = lock
            try:
                await work(container, task)
            except TaskDied:
                raise
            except BaseException:
                container.lock = None
                raise
            container.lock = None
        await call.changed()

    return body


@route("POST", _AT, _MAY, params={"snapname": CONFIG_ID.must(), "description": TEXT})
async def create(call: Call) -> Any:
    name = call.params["snapname"]
    if name in ("current", "vzdump"):
        raise PveError(500, f"unable to use snapshot name '{name}' (reserved name)")

    async def work(container: LabContainer, task: Task) -> None:
        if name in container.snapshots:
            raise TaskError(f"snapshot name '{name}' already used")
        await task.work(call.cluster.times.snapshot_s)
        await call.cluster.substance.snapshot(container, name)
        container.snapshots[name] = {
            "config": copy.deepcopy(container.config),
            "description": call.params.get("description", ""),
            "snaptime": int(time.time()),
            "parent": container.parent,
        }
        container.parent = name

    return call.spawn("vzsnapshot", _under(call, "snapshot", work), may_die=True)


@route("DELETE", _AT + "/{snapname}", _MAY, params={"force": BOOL})
async def delete(call: Call) -> Any:
    name = call.params["snapname"]

    async def work(container: LabContainer, task: Task) -> None:
        gone = _snapshot(container, name, TaskError)
        await task.work(call.cluster.times.snapshot_s)
        await call.cluster.substance.drop_snapshot(container, name)
        del container.snapshots[name]
        for other in container.snapshots.values():
            if other["parent"] == name:
                other["parent"] = gone["parent"]
        if container.parent == name:
            container.parent = gone["parent"]

    return call.spawn("vzdelsnapshot", _under(call, "snapshot-delete", work), may_die=True)


@route("POST", _AT + "/{snapname}/rollback", _EITHER, params={"start": BOOL})
async def rollback(call: Call) -> Any:
    name = call.params["snapname"]

    async def work(container: LabContainer, task: Task) -> None:
        snap, substance = _snapshot(container, name, TaskError), call.cluster.substance
        await substance.stop(container)
        container.stop()
        await call.changed()
        await task.work(call.cluster.times.snapshot_s)
        await substance.rollback(container, name)
        container.config = copy.deepcopy(snap["config"])
        container.parent = name
        await substance.configure(container)
        if call.params.get("start"):
            await substance.start(container)
            container.start()

    return call.spawn("vzrollback", _under(call, "rollback", work), may_die=True)
