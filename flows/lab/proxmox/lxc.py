"""Containers: listing, creation from an archive, destruction, interfaces."""

from __future__ import annotations

import asyncio
from typing import Any

from flows.lab.proxmox import guest
from flows.lab.proxmox.api_cluster import silent_node
from flows.lab.proxmox.cluster import ARCHIVE
from flows.lab.proxmox.errors import PveError, TaskError
from flows.lab.proxmox.params import BOOL, STORAGE, TEXT, VMID, P
from flows.lab.proxmox.restore import restore
from flows.lab.proxmox.routing import Call, route
from flows.lab.proxmox.tasks import Task
from flows.lab.proxmox.views import container_view
from flows.lab.substance import SubstanceError
from flows.lab.world import LabContainer


@route("GET", "/nodes/{node}/lxc", partial=True)
async def listing(call: Call) -> Any:
    if silent_node(call) == call.node:
        raise PveError(596, "Connection timed out", bare=True)
    await call.cluster.refresh(call.cluster.on(call.node))
    return [{"type": "lxc", **container_view(c)} for c in call.cluster.on(call.node) if call.identity.may(f"/vms/{c.vmid}", "VM.Audit")]


@route("GET", "/nodes/{node}/lxc/{vmid}/status/current", ("/vms/{vmid}", "VM.Audit"))
async def current(call: Call) -> Any:
    await call.cluster.refresh([call.container()])
    return {"type": "lxc", **container_view(call.container()), "ha": {"managed": 0}}


@route("GET", "/nodes/{node}/lxc/{vmid}/interfaces", ("/vms/{vmid}", "VM.Audit"))
async def interfaces(call: Call) -> Any:
    container = call.container()
    await call.cluster.refresh([container])
    if container.status != "running":
        return []
    found = [_interface("lo", "00:00:00:00:00:00", "127.0.0.1/8")]
    for key, value in sorted(container.config.items()):
        if key.startswith("net"):
            card = guest.properties(str(value))
            address = card.get("ip", "")
            found.append(_interface(card["name"], card["hwaddr"].lower(), address if "/" in address else None))
    return found


def _interface(name: str, hwaddr: str, inet: str | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "hwaddr": hwaddr, "hardware-address": hwaddr, "ip-addresses": []}
    if inet is not None:
        address, _, prefix = inet.partition("/")
        entry["inet"] = inet
        entry["ip-addresses"] = [{"ip-address": address, "ip-address-type": "inet", "prefix": int(prefix)}]
    return entry


_CREATE = {
    **{name: spec for name, spec in guest.CONFIG.items() if name != "lock"},
    "vmid": VMID,
    "ostemplate": P(optional=False, max_length=255),
    "storage": STORAGE,
    "password": TEXT,
    "ssh-public-keys": TEXT,
    "pool": TEXT,
    "start": BOOL,
    "force": BOOL,
    "restore": BOOL,
    "unique": BOOL,
    "bwlimit": P("number", minimum=0),
    "ignore-unpack-errors": BOOL,
    "ha-managed": BOOL,
    "lock": P(enum=guest.LOCKS),
}


@route("POST", "/nodes/{node}/lxc", params=_CREATE)
async def create(call: Call) -> Any:
    """From an archive of the storage's content: a template, or with ``restore`` a backup."""
    cluster, params, vmid = call.cluster, dict(call.params), call.vmid
    if params.get("restore"):
        given = {key: value for key, value in params.items() if key.rstrip("0123456789") in _STEMS and key not in ("lock", "template")}
        guest.check_rights(call.identity, vmid, {k: v for k, v in given.items() if k in ("features", "hookscript") or k[:2] in ("mp", "de")})
        for key, value in given.items():
            if key.startswith("net"):
                cluster.check_bridge(call.identity, str(value))
        return await restore(call, given)
    if not call.identity.may(f"/vms/{vmid}", "VM.Allocate"):
        raise PveError(403, "Permission check failed")
    storage = cluster.storage(params.pop("storage", "local"), call.node)
    if not params.get("rootfs") and "rootdir" not in storage.content:
        raise PveError.parameters(storage=f"storage '{storage.name}' does not support container directories")
    name, _, size = str(params.get("rootfs") or f"{storage.name}:4").partition(":")
    call.identity.require(f"/storage/{cluster.storage(name, call.node).name}", "Datastore.AllocateSpace")
    archive = params["ostemplate"].rpartition("/")[2]
    config = {key: value for key, value in params.items() if key.rstrip("0123456789") in _STEMS and key not in ("lock", "template")}
    guest.check_rights(call.identity, vmid, {k: v for k, v in config.items() if k in ("features", "hookscript") or k[:2] in ("mp", "de")})
    for key, value in config.items():
        if key.startswith("net"):
            cluster.check_bridge(call.identity, str(value))
    if vmid in cluster.world.containers:
        raise PveError(500, f"unable to create CT {vmid} - CT {vmid} already exists on node '{cluster.world.containers[vmid].node}'")
    digits = size.split(",")[0]
    if not digits.isdigit():
        raise PveError.parameters(rootfs="invalid format - the lab takes STORAGE:SIZE_IN_GIB\n")
    config = {"arch": "amd64", "ostype": "debian", "memory": 512, "swap": 512, "unprivileged": 1, **config}
    config["rootfs"] = f"{name}:vm-{vmid}-disk-0,size={digits}G"
    config.setdefault("hostname", f"CT{vmid}")
    container = LabContainer(vmid, call.node, lock="create", config=config, pool=params.get("pool"))
    cluster.world.containers[vmid] = container
    await call.changed()

    async def body(task: Task) -> None:
        try:
            if archive != ARCHIVE:
                raise TaskError(f"unable to create CT {vmid} - volume '{params['ostemplate']}' does not exist")
            task.say(f"extracting archive '/var/lib/vz/template/cache/{archive}'")
            await task.work(cluster.times.clone_s)
            await cluster.substance.template(container, "")
            container.lock = None
            if params.get("start"):
                async with cluster.config_lock(vmid):
                    await cluster.substance.start(container)
                    container.start()
        except (TaskError, SubstanceError, asyncio.CancelledError):
            if not task.dies:
                await cluster.substance.destroy(container)
                cluster.world.containers.pop(vmid, None)
                await call.changed()
            raise
        await call.changed()

    return call.spawn("vzcreate", body, may_die=True)


_STEMS = frozenset(name.removesuffix("[n]") for name in guest.CONFIG)


@route(
    "DELETE",
    "/nodes/{node}/lxc/{vmid}",
    ("/vms/{vmid}", "VM.Allocate"),
    params={"destroy-unreferenced-disks": BOOL, "force": BOOL, "purge": BOOL},
)
async def destroy(call: Call) -> Any:
    cluster, vmid = call.cluster, call.vmid

    def refuse_unless_allowed() -> LabContainer:
        container = call.container()
        if container.config.get("protection"):
            raise PveError(500, f"can't remove CT {vmid} - protection mode enabled")
        cluster.check_lock(container)  # ``force`` does not help against a lock: only `pct unlock` at the node does
        if container.status == "running" and not call.params.get("force"):
            raise PveError(500, f"unable to destroy CT {vmid} - container is running")
        return container

    await cluster.refresh([call.container()])
    refuse_unless_allowed()

    async def body(task: Task) -> None:
        async with cluster.config_lock(vmid):
            container = refuse_unless_allowed()
            await task.work(0.0)  # a task that is to fail does so before its effect
            await cluster.substance.stop(container)
            container.stop()
            container.lock = "destroyed"
            await call.changed()
            await task.work(cluster.times.destroy_s)
            await cluster.substance.destroy(container)
            cluster.world.containers.pop(vmid, None)
            task.say(f'Logical volume "vm-{vmid}-disk-0" successfully removed.')
            task.say("purging CT " + str(vmid) + " from related configurations..")
            await call.changed()

    return call.spawn("vzdestroy", body)
