"""``POST /nodes/{node}/lxc`` with ``restore=1``: a container from a backup, a new one or over a stopped one (``force=1``)."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from flows.lab.proxmox import guest
from flows.lab.proxmox.archives import Archive, may_use, owner_of
from flows.lab.proxmox.errors import PveError, TaskError
from flows.lab.proxmox.routing import Call
from flows.lab.proxmox.tasks import Task
from flows.lab.substance import SubstanceError
from flows.lab.world import LabContainer


async def _check(call: Call, storage: str, size: str) -> LabContainer | None:
    """The container that is to be overwritten. Raises PveError, in Proxmox's order."""
    cluster, params, vmid = call.cluster, call.params, call.vmid
    there = cluster.world.containers.get(vmid)
    if there is not None and not (params.get("force") and there.node == call.node):
        cluster.check_free(vmid)
    if there is not None:
        await cluster.refresh([there])
        if there.status == "running":
            raise PveError(500, "can't overwrite running container")
        if there.config.get("protection"):
            raise PveError(500, f"unable to restore CT {vmid} - protection mode enabled")
    if params.get("pool") not in (None, *cluster.config.pools):
        raise PveError(403, f"Permission check failed (pool '{params['pool']}' does not exist)")
    may = call.identity.may
    if not may(f"/vms/{vmid}", "VM.Allocate") and not (there is not None and may(f"/vms/{vmid}", "VM.Backup")):
        raise PveError(403, "Permission check failed")
    volid = str(params["ostemplate"])
    if ":backup/" not in volid:
        raise PveError(500, f"unable to use volume {volid} - content type needs to be 'backup'")
    owner = owner_of(volid)
    may_use(call.identity, volid, None if owner == vmid else owner)
    target = cluster.storage(storage, call.node)
    if "rootdir" not in target.content:
        raise PveError.parameters(storage=f"storage '{storage}' does not support container directories")
    call.identity.require(f"/storage/{storage}", "Datastore.AllocateSpace")
    if size and not size.isdigit():
        raise PveError.parameters(rootfs="invalid format - the lab takes STORAGE:SIZE_IN_GIB\n")
    return there


async def restore(call: Call, given: dict[str, Any]) -> str:
    """``given`` is the configuration in the request."""
    cluster, vmid, node = call.cluster, call.vmid, call.node
    volid, head = str(call.params["ostemplate"]), f"unable to restore CT {call.vmid} -"
    name, _, size = str(given.pop("rootfs", "")).partition(":")
    size = size.split(",")[0]
    storage = name or str(call.params.get("storage", "local"))
    there = await _check(call, storage, size)
    if there is not None and there.lock:
        raise PveError(500, f"{head} CT is locked ({there.lock})")
    container = there or LabContainer(vmid, node, config={"hostname": f"CT{vmid}"}, pool=call.params.get("pool"))
    container.lock = "create"
    cluster.world.containers[vmid] = container
    await call.changed()

    async def body(task: Task) -> None:
        touched = there is None
        try:
            async with cluster.config_lock(vmid):
                await cluster.refresh_held(container)
                if container.status == "running":
                    raise TaskError("can't overwrite running container")
                archive = cluster.archive(node, volid)
                task.say(f"recovering backed-up configuration from '{volid}'")
                await task.work(cluster.times.clone_s)
                touched = True
                container.snapshots, container.parent = {}, None
                task.say(f"restoring '{volid}' now..")
                await cluster.substance.restore(container, archive.file, lambda line: task.say(line.replace(str(archive.file), archive.path)))
                task.say("merging backed-up and given configuration..")
                _merge(container, archive, {**given}, storage, size, unique=bool(call.params.get("unique")))
                await cluster.substance.configure(container)
                container.lock = None
                if call.params.get("start"):
                    await cluster.substance.start(container)
                    container.start()
        except (TaskError, PveError, SubstanceError, asyncio.CancelledError) as error:
            if not task.dies:
                await _undo(call, container, touched)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise TaskError(f"{head} {error.message if isinstance(error, PveError) else error}") from error
        await call.changed()

    return call.spawn("vzrestore", body, may_die=True)


async def _undo(call: Call, container: LabContainer, touched: bool) -> None:
    """What was not touched yet is as before; what was, is gone, as on a real node."""
    container.lock = None
    if touched and call.cluster.world.containers.get(container.vmid) is container:
        await call.cluster.substance.destroy(container)
        call.cluster.world.containers.pop(container.vmid, None)
    await call.changed()


def _merge(container: LabContainer, archive: Archive, given: dict[str, Any], storage: str, size: str, *, unique: bool) -> None:
    record = copy.deepcopy(archive.record)
    config = {**record.config, **given}
    text = f"{size}G" if size else guest.size_text(guest.disk_bytes(record.config))
    config["rootfs"] = f"{storage}:vm-{container.vmid}-disk-0,size={text}"
    if unique:
        for key in [k for k in config if k.startswith("net") and k not in given]:
            card = {**guest.properties(str(config[key])), "hwaddr": guest.mac()}
            config[key] = guest.net(",".join(f"{k}={v}" for k, v in card.items()))
    container.config = config
    container.template = record.template
    container.trusted_key, container.host_key, container.agent = record.trusted_key, record.host_key, record.agent
    if container.agent is not None:
        container.agent.workload, container.agent.frozen = "stopped", False
