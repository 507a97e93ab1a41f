"""Storages: a record of which volumes there are. Nothing is stored."""

from __future__ import annotations

from typing import Any

from flows.lab.config import StorageConfig
from flows.lab.proxmox import guest
from flows.lab.proxmox.cluster import ARCHIVE
from flows.lab.proxmox.params import BOOL, STORAGE, P
from flows.lab.proxmox.routing import Call, route

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
    return [v for v in volumes if wanted in (None, v["content"]) and vmid in (None, v.get("vmid"))]
