"""Reading and changing a container's configuration, and growing its disk.

A change takes effect at once; Proxmox keeps some of a running container's changes pending until its next start.
"""

from __future__ import annotations

import re
from typing import Any

from flows.lab.proxmox import guest
from flows.lab.proxmox.errors import PveError
from flows.lab.proxmox.params import BOOL, CONFIG_ID, TEXT, P
from flows.lab.proxmox.routing import Call, route
from flows.lab.proxmox.tasks import Task
from flows.lab.substance import SubstanceError
from flows.lab.world import LabContainer

_ANY = ("/vms/{vmid}", "any", "VM.Config.Disk", "VM.Config.CPU", "VM.Config.Memory", "VM.Config.Network", "VM.Config.Options")


@route("GET", "/nodes/{node}/lxc/{vmid}/config", ("/vms/{vmid}", "VM.Audit"), params={"current": BOOL, "snapshot": CONFIG_ID})
async def read(call: Call) -> Any:
    container = call.container()
    snapshot = call.params.get("snapshot")
    if snapshot is not None:
        if "current" in call.params:
            raise PveError.parameters(**dict.fromkeys(("snapshot", "current"), "cannot use 'snapshot' parameter with 'current'"))
        if snapshot not in container.snapshots:
            raise PveError(500, f"snapshot '{snapshot}' does not exist")
        return {**guest.described(container, container.snapshots[snapshot]["config"]), "digest": guest.digest(container)}
    shown = guest.described(container, container.config)
    if container.lock:
        shown["lock"] = container.lock
    return {**shown, "digest": guest.digest(container)}


def check_digest(container: LabContainer, digest: str | None) -> None:
    if digest is not None and digest != guest.digest(container):
        raise PveError(500, "detected modified configuration - file changed by other user? Try again.")


def _deletions(text: str, given: dict[str, Any]) -> list[str]:
    """Raises PveError for keys that do not exist, are given at the same time, or may not be deleted."""
    keys = [k for k in re.split(r"[;,\s\0]+", text) if k]
    for key in keys:
        stem = re.sub(r"\d+$", "[n]", key)
        if key not in guest.CONFIG and stem not in guest.CONFIG:
            raise PveError.parameters(delete=f"unknown option '{key}'")
        if key in given:
            raise PveError.parameters(delete=f"you can't use '-{key}' and -delete {key}' at the same time")
        if key in ("memory", "rootfs"):
            raise PveError(500, f"unable to delete required option '{key}'")
        if key in guest.READ_ONLY:
            raise PveError(500, f"unable to delete read-only option: '{key}'")
    return keys


@route(
    "PUT",
    "/nodes/{node}/lxc/{vmid}/config",
    _ANY,
    params={**guest.CONFIG, "delete": TEXT, "digest": P(max_length=40), "revert": TEXT},
)
async def change(call: Call) -> Any:
    given = {k: v for k, v in call.params.items() if k not in ("node", "vmid", "digest", "delete", "revert")}
    deletions = _deletions(call.params.get("delete", ""), given)
    if not given and not deletions and "revert" not in call.params:
        raise PveError(500, "no options specified")
    container = call.container()
    privileged = not container.config.get("unprivileged", 0)
    guest.check_rights(call.identity, call.vmid, {**given, **dict.fromkeys(deletions, "")}, privileged)
    async with call.cluster.config_lock(call.vmid):
        container = call.container()
        call.cluster.check_lock(container)
        check_digest(container, call.params.get("digest"))
        for key, value in given.items():
            if key in guest.READ_ONLY:
                raise PveError(500, f"unable to modify read-only option: '{key}'")
            if key.startswith("net"):
                call.cluster.check_bridge(call.identity, str(value))
        lock = given.pop("lock", None)
        before = dict(container.config)
        for key in deletions:
            container.config.pop(key, None)
        for key, value in given.items():
            if value == "" and key in ("tags", "description"):
                container.config.pop(key, None)
            else:
                container.config[key] = value
        try:
            await call.cluster.substance.configure(container)
        except SubstanceError:
            container.config = before
            raise
        container.lock = lock or container.lock
    await call.changed()
    return None


@route(
    "PUT",
    "/nodes/{node}/lxc/{vmid}/resize",
    ("/vms/{vmid}", "VM.Config.Disk"),
    params={"disk": P(optional=False), "size": P(optional=False), "digest": P(max_length=40)},
)
async def resize(call: Call) -> Any:
    """``+2G`` adds, ``20G`` is absolute; nothing ever shrinks."""
    disk, text = call.params["disk"], call.params["size"]
    if not re.fullmatch(r"\+?\d+(\.\d+)?[KMGT]?", text):
        raise PveError.parameters(size="value does not match the regex pattern")
    if not re.fullmatch(r"rootfs|mp\d{1,3}", disk):
        raise PveError.parameters(disk=f"value '{disk}' does not have a value in the enumeration 'rootfs, mp0, mp1, …'")
    container = call.container()
    call.cluster.check_lock(container)
    check_digest(container, call.params.get("digest"))
    if disk not in container.config:
        raise PveError(500, f"disk '{disk}' does not exist")
    volume = guest.properties(str(container.config[disk]))
    old = guest.size_bytes(volume.get("size", "4G"))
    new = guest.size_bytes(text.lstrip("+")) + (old if text.startswith("+") else 0)
    call.identity.require(f"/storage/{volume['volume'].partition(':')[0]}", "Datastore.AllocateSpace")
    if new < old:
        raise PveError(500, "unable to shrink disk size")
    if new == old:
        raise PveError(500, "disk is already at specified size")

    async def body(task: Task) -> None:
        async with call.cluster.config_lock(call.vmid):
            now = call.container()
            call.cluster.check_lock(now)
            await task.work(0.05)
            before = now.config[disk]
            now.config[disk] = f"{volume['volume']}," + ",".join(
                f"{k}={v}" for k, v in {**volume, "size": guest.size_text(new)}.items() if k != "volume"
            )
            try:
                await call.cluster.substance.configure(now)
            except SubstanceError:
                now.config[disk] = before
                raise
        await call.changed()

    return call.spawn("resize", body)
