"""Storages and their volumes: root file systems, templates, backups."""

from __future__ import annotations

import asyncio
from typing import Any

from flows.lab.config import StorageConfig
from flows.lab.proxmox import guest
from flows.lab.proxmox.archives import Archive, may_use, owner_of
from flows.lab.proxmox.cluster import ARCHIVE
from flows.lab.proxmox.errors import PveError, TaskError
from flows.lab.proxmox.params import BOOL, STORAGE, TEXT, P
from flows.lab.proxmox.routing import Call, route
from flows.lab.proxmox.tasks import Task

_SEES = ("/storage/{storage}", "any", "Datastore.Audit", "Datastore.AllocateSpace")


def _numbers(call: Call, storage: StorageConfig) -> dict[str, Any]:
    total = call.cluster.world.nodes[call.node].disk_gb * guest.GIB
    used = sum(guest.disk_bytes(c.config) for c in call.cluster.on(call.node) if guest.storage_of(c.config) == storage.name) // 8
    return {
        "type": storage.kind,
        "content": ",".join(storage.content),
        "active": 1,
        "enabled": 1,
        "shared": int(storage.shared),
        "total": total,
        "used": used,
        "avail": total - used,
    }


@route("GET", "/storage", params={"type": P()})
async def configured(call: Call) -> Any:
    wanted = call.params.get("type")
    return [
        {"storage": s.name, "type": s.kind, "content": ",".join(s.content), "shared": int(s.shared), "digest": "0" * 40}
        for s in call.cluster.config.storages
        if wanted in (None, s.kind) and call.identity.may(f"/storage/{s.name}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)
    ]


@route(
    "GET",
    "/nodes/{node}/storage",
    params={"content": P(), "enabled": BOOL, "format": BOOL, "storage": STORAGE, "target": P()},
)
async def available(call: Call) -> Any:
    content, name = call.params.get("content"), call.params.get("storage")
    return [
        {"storage": s.name, **(numbers := _numbers(call, s)), "used_fraction": numbers["used"] / numbers["total"]}
        for s in call.cluster.storages_on(call.node)
        if name in (None, s.name)
        and (content is None or set(content.split(",")) & set(s.content))
        and call.identity.may(f"/storage/{s.name}", "Datastore.Audit", "Datastore.AllocateSpace", any_of=True)
    ]


@route("GET", "/nodes/{node}/storage/{storage}/status", _SEES)
async def status(call: Call) -> Any:
    return _numbers(call, call.cluster.storage(call.params["storage"], call.node))


@route("GET", "/nodes/{node}/storage/{storage}/content", _SEES, params={"content": P(), "vmid": P("integer", minimum=100)})
async def content(call: Call) -> Any:
    storage = call.cluster.storage(call.params["storage"], call.node)
    wanted, vmid = call.params.get("content"), call.params.get("vmid")
    volumes: list[dict[str, Any]] = []
    if "rootdir" in storage.content:
        for container in call.cluster.on(call.node):
            if guest.storage_of(container.config) == storage.name:
                volid = str(container.config["rootfs"]).split(",")[0]
                size = guest.disk_bytes(container.config)
                volumes.append({"volid": volid, "content": "rootdir", "format": "raw", "size": size, "vmid": container.vmid, "ctime": 1_760_000_000})
    if "vztmpl" in storage.content:
        archive = {"volid": f"{storage.name}:vztmpl/{ARCHIVE}", "content": "vztmpl", "format": "tzst", "size": 123_456_789, "ctime": 1_760_000_000}
        volumes.append(archive)
    if "backup" in storage.content:
        held = call.cluster.archives.on(call.cluster.place(storage.name, call.node), storage.name)
        volumes += [backup.view() for backup in held if _may(call, backup.volid, backup.vmid)]
    return [v for v in volumes if wanted in (None, v["content"]) and vmid in (None, v.get("vmid"))]


def _may(call: Call, volid: str, owner: int) -> bool:
    try:
        may_use(call.identity, volid, owner)
    except PveError:
        return False
    return True


_VOLUME = "/nodes/{node}/storage/{storage}/content/{volume}"


def _backup(call: Call, *, to_delete: bool = False) -> Archive:
    """The volume that the path names, with or without its storage. Raises PveError. The lab's other volumes are their containers' own."""
    storage, volume = str(call.params["storage"]), str(call.params["volume"])
    volid = volume if ":" in volume else f"{storage}:{volume}"
    if volid.partition(":")[0] != storage:
        raise PveError.parameters(volume=f"storage ID mismatch ({volid.partition(':')[0]} != {storage})\n")
    owner = owner_of(volid)
    if owner is None and to_delete:
        call.identity.require(f"/storage/{storage}", "Datastore.Allocate")
    may_use(call.identity, volid, owner)
    call.cluster.storage(storage, call.node)
    return call.cluster.archive(call.node, volid)


@route("GET", _VOLUME, params={"storage": STORAGE})
async def volume(call: Call) -> Any:
    found = _backup(call)
    answer: dict[str, Any] = {"path": found.path, "size": found.size, "used": found.size, "format": found.format, "protected": int(found.protected)}
    return {**answer, "notes": found.notes}


@route("PUT", _VOLUME, params={"storage": STORAGE, "notes": TEXT, "protected": BOOL})
async def annotate(call: Call) -> Any:
    found = _backup(call)
    found.notes = call.params.get("notes", found.notes)
    found.protected = bool(call.params.get("protected", found.protected))
    return None


@route("DELETE", _VOLUME, params={"storage": STORAGE, "delay": P("integer", minimum=1, maximum=30)})
async def remove(call: Call) -> Any:
    found = _backup(call, to_delete=True)
    place = call.cluster.place(found.storage, call.node)

    async def body(task: Task) -> None:
        await task.work(0.0)
        if found.protected:
            raise TaskError(f"cannot remove protected volume '{found.volid.partition(':')[2]}' on '{found.storage}'")
        if call.cluster.archives.find(place, found.volid) is not found:
            raise TaskError(f"volume '{found.volid}' does not exist")
        call.cluster.archives.remove(place, found)
        task.say(f"Removed volume '{found.volid}'")

    upid = call.spawn("imgdel", body, id_=f"{found.vmid}@{found.storage}")
    delay = call.params.get("delay")
    if delay is None:
        return upid
    task = call.cluster.tasks.find(call.node, upid)
    if task.job is not None:
        await asyncio.wait({task.job}, timeout=float(delay))
    if task.running:
        return upid
    if task.status != "OK":
        raise PveError(500, str(task.status))
    return None
