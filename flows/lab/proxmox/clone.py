"""Clones. The source is under ``lock: disk`` while one runs; the new configuration, description included, stands under
``lock: create`` before the first byte is copied, so that a half clone looks like a finished one but for that lock."""

from __future__ import annotations

import asyncio
from typing import Any

from flows.lab.proxmox import guest
from flows.lab.proxmox.errors import PveError, TaskError
from flows.lab.proxmox.params import BOOL, CONFIG_ID, STORAGE, TEXT, VMID, P, dns_name, node_name
from flows.lab.proxmox.routing import Call, route
from flows.lab.proxmox.tasks import Task
from flows.lab.substance import SubstanceError
from flows.lab.world import LabContainer

_PARAMS = {
    "newid": VMID,
    "bwlimit": P("number", minimum=0),
    "description": TEXT,
    "full": BOOL,
    "hostname": P(form=dns_name),
    "pool": TEXT,
    "snapname": CONFIG_ID,
    "storage": STORAGE,
    "target": P(form=node_name),
}


def _copy(call: Call, source: LabContainer, full: bool) -> LabContainer:
    """The new container's record, checked as Proxmox checks it. Raises PveError."""
    cluster, params, newid = call.cluster, call.params, int(call.params["newid"])
    cluster.check_free(newid)
    if "storage" in params and not full:
        raise PveError(500, "parameter 'storage' not allowed for linked clones")
    snapname = params.get("snapname")
    if snapname is not None and snapname not in source.snapshots:
        raise PveError(500, f"snapshot '{snapname}' does not exist")
    if full and source.status == "running" and snapname is None:
        raise PveError(500, "Full clone of a running container is only possible from a snapshot")
    if not full and not source.template:
        raise PveError(500, f"Linked clone feature for '{str(source.config['rootfs']).split(',')[0]}' is not available")
    target = params.get("target", call.node)
    storage = cluster.storage(params.get("storage", guest.storage_of(source.config)), target)
    if target != call.node and not storage.shared:
        if "storage" in params:
            raise PveError(500, f"can't clone to non-shared storage '{storage.name}'")
        raise PveError(500, f"can't clone CT to node '{target}' (CT uses local storage)")
    if "rootdir" not in storage.content:
        raise PveError(500, f"storage '{storage.name}' does not allow content type 'rootdir' (Container)")
    call.identity.require(f"/storage/{storage.name}", "Datastore.AllocateSpace")
    base = source.snapshots[snapname]["config"] if snapname is not None else source.config
    config = {key: value for key, value in base.items() if not key.startswith("unused")}
    for key in [k for k in config if k.startswith("net")]:
        card = {**guest.properties(str(config[key])), "hwaddr": guest.mac()}
        config[key] = guest.net(",".join(f"{k}={v}" for k, v in card.items()))
        cluster.check_bridge(call.identity, config[key])
    for key in ("hostname", "description"):
        if params.get(key):
            config[key] = params[key]
    config["rootfs"] = f"{storage.name}:vm-{newid}-disk-0,size={guest.size_text(guest.disk_bytes(base))}"
    return LabContainer(newid, call.node, lock="create", config=config, pool=params.get("pool"))


@route("POST", "/nodes/{node}/lxc/{vmid}/clone", ("/vms/{vmid}", "VM.Clone"), params=_PARAMS)
async def clone(call: Call) -> Any:
    cluster, newid = call.cluster, int(call.params["newid"])
    if not call.identity.may(f"/vms/{newid}", "VM.Allocate"):
        raise PveError(403, "Permission check failed")
    target = call.params.get("target", call.node)
    if target not in cluster.world.nodes:
        raise PveError(500, f"no such cluster node '{target}'")
    if call.params.get("pool") not in (None, *cluster.config.pools):
        raise PveError(403, f"Permission check failed (pool '{call.params['pool']}' does not exist)")
    async with cluster.config_lock(call.vmid):
        source = call.container()
        cluster.check_lock(source)
        full = bool(call.params.get("full", not source.template))
        container = _copy(call, source, full)
        source.lock = "disk"
        cluster.world.containers[newid] = container
    storage = guest.storage_of(container.config)

    async def body(task: Task) -> None:
        try:
            await _work(task)
        except (TaskError, PveError, SubstanceError, asyncio.CancelledError) as error:
            if not task.dies and cluster.world.containers.get(newid) is container:
                await cluster.substance.destroy(container)
                cluster.world.containers.pop(newid, None)
                await call.changed(newid)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise TaskError(f"clone failed: {error.message if isinstance(error, PveError) else error}") from error
        finally:
            # A worker that is killed leaves its source under ``lock: disk`` as well, until a person types `pct unlock`.
            # The lab takes that as done: one dead clone must not end the use of a template.
            if source.lock == "disk":
                source.lock = None

    async def _work(task: Task) -> None:
        async with cluster.storage_lock(call.node, storage):
            task.say(f"create {'full' if full else 'linked'} clone of mountpoint rootfs ({str(source.config['rootfs']).split(',')[0]})")
            await call.changed(newid)
            await task.work(cluster.times.clone_s)
            await cluster.substance.clone(source, container, call.params.get("snapname"))
        if cluster.world.containers.get(newid) is not container or container.lock != "create":
            raise TaskError("Lost 'create' config lock, aborting.")
        container.lock, container.node = None, target
        await call.changed(newid)

    return call.spawn("vzclone", body, may_die=True)
