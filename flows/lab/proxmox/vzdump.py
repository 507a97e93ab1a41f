"""Backups: ``POST /nodes/{node}/vzdump``. One job per node at a time; its answer names no volume, only its log and the storage's content do."""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections.abc import Sequence
from typing import Any

from flows.lab.proxmox import guest
from flows.lab.proxmox.archives import EXTENSIONS, Archive, may_use, owner_of, retention, shown_path, superfluous
from flows.lab.proxmox.errors import PveError, TaskDied, TaskError
from flows.lab.proxmox.params import BOOL, COUNT, NODE, STORAGE, TEXT, P
from flows.lab.proxmox.routing import Call, route
from flows.lab.proxmox.tasks import Task
from flows.lab.substance import SubstanceError
from flows.lab.world import LabContainer

LOCK_FILE = "/var/run/vzdump.lock"
_VARIABLES = ("cluster", "guestname", "node", "vmid")


def _vmids(value: str) -> tuple[int, ...]:
    found = [part for part in re.split(r"[;,\s\0]+", value) if part]
    for part in found:
        if not part.isdecimal() or not 100 <= int(part) <= 999_999_999:
            raise ValueError("invalid format - value does not look like a valid VM ID\n")
    return tuple(dict.fromkeys(int(part) for part in found))


def _notes_template(value: str) -> str:
    unknown = [name for name in re.findall(r"\{\{([^}]*)\}\}", value) if name not in _VARIABLES]
    if "\n" in value:
        raise ValueError("contains a line feed\n")
    if unknown:
        raise ValueError(f"found unknown: {', '.join(unknown)}\n")
    return value


_PARAMS = {
    "all": BOOL,
    "bwlimit": COUNT,
    "compress": P(enum=("0", "1", "gzip", "lzo", "zstd")),
    "dumpdir": TEXT,
    "exclude": P(form=_vmids),
    "exclude-path": P("array"),
    "fleecing": TEXT,
    "ionice": P("integer", minimum=0, maximum=8),
    "job-id": P(max_length=50),
    "lockwait": COUNT,
    "mailnotification": P(enum=("always", "failure")),
    "mailto": TEXT,
    "mode": P(enum=("snapshot", "suspend", "stop")),
    "node": P(form=NODE.form),
    "notes-template": P(max_length=1024, form=_notes_template),
    "notification-mode": P(enum=("auto", "legacy-sendmail", "notification-system")),
    "pbs-change-detection-mode": P(enum=("legacy", "data", "metadata")),
    "performance": TEXT,
    "pigz": P("integer"),
    "pool": TEXT,
    "protected": BOOL,
    "prune-backups": P(form=retention),
    "quiet": BOOL,
    "remove": BOOL,
    "script": TEXT,
    "stdexcludes": BOOL,
    "stdout": BOOL,
    "stop": BOOL,
    "stopwait": COUNT,
    "storage": STORAGE,
    "tmpdir": TEXT,
    "vmid": P(form=_vmids),
    "zstd": P("integer"),
}


def _check(call: Call) -> None:
    """What may be asked, by whom. Raises PveError."""
    params, identity = call.params, call.identity
    if "stdout" in params:
        raise PveError.parameters(stdout="option is only allowed on the command line interface.")
    if not identity.root:
        for name in ("tmpdir", "dumpdir", "script", "job-id"):
            if name in params:
                raise PveError.parameters(**{name: "Only root may set this option."})
        if any(name in params for name in ("bwlimit", "ionice", "performance")):
            identity.require("/", "Sys.Modify")
        if "prune-backups" in params:
            identity.require(f"/storage/{_storage(call)}", "Datastore.Allocate")
    for name in ("all", "exclude", "pool"):
        if params.get(name) and params.get("vmid"):
            raise PveError.parameters(**{name: "option conflicts with option 'vmid'"})
    for name in ("notes-template", "protected"):
        if name in params and "storage" not in params:
            raise PveError.parameters(storage=f"missing property - '{name}' requires this property")
    if not any(params.get(name) for name in ("all", "stop", "pool", "exclude", "vmid")):
        raise PveError.parameters(vmid="property is missing")
    if params.get("pool") not in (None, *call.cluster.config.pools):
        raise PveError(500, f"no such pool '{params['pool']}'")


def _storage(call: Call) -> str:
    return str(call.params.get("storage", "local"))


def _chosen(call: Call) -> list[int]:
    """The VMIDs of this node that the job is for; those that exist nowhere fail in the job."""
    there, params = call.cluster.world.containers, call.params
    if params.get("vmid"):
        return sorted(v for v in params["vmid"] if v not in there or there[v].node == call.node)
    if params.get("pool"):
        return [c.vmid for c in call.cluster.on(call.node) if c.pool == params["pool"]]
    excluded = params.get("exclude", ())
    return [c.vmid for c in call.cluster.on(call.node) if c.vmid not in excluded]


def _command_line(call: Call, chosen: Sequence[int]) -> str:
    words = ["vzdump", *(map(str, chosen) if call.params.get("vmid") else ())]
    for name, value in sorted(call.params.items()):
        if name == "prune-backups":
            value = ",".join(f"keep-{key}={number}" for key, number in sorted(value.items()))
        if name == "exclude":
            value = ",".join(map(str, value))
        if name != "vmid":
            words += [f"--{name}", str(value)]
    return " ".join(words)


@route("POST", "/nodes/{node}/vzdump", params=_PARAMS)
async def vzdump(call: Call) -> Any:
    _check(call)
    chosen = _chosen(call)
    if call.params.get("stop"):
        call.identity.require(f"/nodes/{call.node}", "Sys.Modify")
        for running in call.cluster.tasks.running("vzdump"):
            if running.node == call.node and running.job is not None:
                running.job.cancel()
        if not chosen or not call.params.get("vmid"):
            return "OK"
    if not chosen and not (call.params.get("all") or call.params.get("exclude")):
        return "OK"
    call.identity.require(f"/storage/{_storage(call)}", "Datastore.AllocateSpace")

    async def body(task: Task) -> None:
        _storage_fits(call)
        async with call.cluster.vzdump_lock(call.node, call.params.get("lockwait", 180) * 60.0, task):
            await _job(call, task, chosen)

    return call.spawn("vzdump", body, id_=chosen[0] if len(chosen) == 1 else "", may_die=True)


def _storage_fits(call: Call) -> None:
    """Raises TaskError."""
    name = _storage(call)
    try:
        storage = call.cluster.storage(name, call.node)
    except PveError as error:
        raise TaskError(f"could not get storage information for '{name}': {error.message}") from error
    if "backup" not in storage.content:
        raise TaskError(f"could not get storage information for '{name}': can't use storage '{name}' for backups - wrong content type")


async def _job(call: Call, task: Task, chosen: Sequence[int]) -> None:
    say, failed = task.say, False
    say(f"INFO: starting new backup job: {_command_line(call, chosen)}")
    for vmid in chosen:
        if vmid in call.cluster.world.containers and not call.identity.may(f"/vms/{vmid}", "VM.Backup"):
            if call.params.get("all"):
                continue
            call.identity.require(f"/vms/{vmid}", "VM.Backup")
        began = time.time()
        try:
            await _one(call, task, vmid, began)
        except (TaskError, PveError, SubstanceError, OSError) as error:
            failed = True
            say(f"ERROR: Backup of VM {vmid} failed - {error.message if isinstance(error, PveError) else error}")
            say(f"INFO: Failed at {_clock(time.time())}")
        else:
            passed = int(time.time() - began)
            say(f"INFO: Finished Backup of VM {vmid} ({passed // 3600:02d}:{passed % 3600 // 60:02d}:{passed % 60:02d})")
            say(f"INFO: Backup finished at {_clock(time.time())}")
    say(f"INFO: Backup job finished {'with errors' if failed else 'successfully'}")
    if failed:
        raise TaskError("job errors")


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(when))


async def _one(call: Call, task: Task, vmid: int, began: float) -> None:
    """One container, under ``lock: backup``; the lock file is free meanwhile, so that others meet the lock. Raises what made it fail."""
    cluster, say = call.cluster, task.say
    container = cluster.world.containers.get(vmid)
    if container is None:
        raise TaskError(f"unable to find VM '{vmid}'")
    say(f"INFO: Starting Backup of VM {vmid} (lxc)")
    say(f"INFO: Backup started at {_clock(began)}")
    await cluster.refresh([container])
    say(f"INFO: status = {container.status}")
    mode = str(call.params.get("mode", "snapshot")) if container.status == "running" else "stop"
    async with cluster.config_lock(vmid):
        cluster.check_lock(container)
        container.lock = "backup"
    await call.changed(vmid)
    stopped = False
    try:
        say(f"INFO: CT Name: {container.config.get('hostname', f'CT{vmid}')}")
        say("INFO: including mount point rootfs ('/') in backup")
        say(f"INFO: backup mode: {mode}")
        say(f"INFO: ionice priority: {call.params.get('ionice', 7)}")
        if mode == "stop" and container.status == "running":
            say("INFO: stopping virtual guest")
            if not await cluster.substance.shutdown(container, call.params.get("stopwait", 10) * 60.0):
                raise TaskError("command 'lxc-stop' failed: container did not stop")
            container.stop()
            stopped = True
            await call.changed(vmid)
        await _write(call, task, container, began)
    except TaskDied:
        raise  # a worker that is killed leaves the lock behind
    except BaseException:
        await _resume(call, task, container, stopped)
        raise
    await _resume(call, task, container, stopped)


async def _resume(call: Call, task: Task, container: LabContainer, stopped: bool) -> None:
    if stopped:
        task.say("INFO: restarting vm")
        await call.cluster.substance.start(container)
        container.start()
    if container.lock == "backup" and not task.dies:
        container.lock = None
    await call.changed(container.vmid)


async def _write(call: Call, task: Task, container: LabContainer, began: float) -> None:
    """Raises what made it fail; then there is no archive."""
    cluster, vmid, name = call.cluster, container.vmid, _storage(call)
    place, extension = cluster.place(name, call.node), EXTENSIONS[call.params.get("compress", "0")]
    if cluster.archives.directory is not None and extension != "tar.zst":
        raise TaskError("the lab packs real containers by zstd alone: compress=zstd")
    while (named := cluster.archives.name(place, name, vmid, extension, began)) is None:
        await asyncio.sleep(0.05)  # the name has the second of its beginning
        began = time.time()
    filename, stamp = named
    file = cluster.archives.file(place, name, filename)
    shown, record = shown_path(name, filename), copy.deepcopy(container)
    await task.work(cluster.times.backup_s)
    await cluster.substance.backup(container, file, lambda line: task.say(f"INFO: {line.replace(str(file), shown)}"))
    size = file.stat().st_size if cluster.archives.directory is not None else guest.disk_bytes(container.config) // 16
    archive = Archive(f"{name}:backup/{filename}", call.node, vmid, stamp, size, record, file)
    cluster.archives.add(place, archive)
    if call.params.get("notes-template"):
        task.say("INFO: adding notes to backup")
        archive.notes = _notes(call, container)
    if call.params.get("protected"):
        task.say("INFO: marking backup as protected")
        archive.protected = True
    keep = call.params.get("prune-backups", {"all": 1})
    if call.params.get("remove", 1) and not keep.get("all"):
        task.say(f"INFO: prune older backups with retention: {', '.join(f'keep-{k}={v}' for k, v in sorted(keep.items()))}")
        gone = superfluous(cluster.archives.on(place, name, vmid), keep)
        for old in gone:
            task.say(f"INFO: removing backup '{old.volid}'")
            cluster.archives.remove(place, old)
        task.say(f"INFO: pruned {len(gone)} backup(s){' not covered by keep-retention policy' if gone else ''}")


def _notes(call: Call, container: LabContainer) -> str:
    values = {
        "cluster": call.cluster.config.cluster or "standalone node",
        "guestname": str(container.config.get("hostname", f"CT{container.vmid}")),
        "node": call.node,
        "vmid": str(container.vmid),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], str(call.params["notes-template"]))
    return text.replace("\\n", "\n").replace("\\\\", "\\")


@route("GET", "/nodes/{node}/vzdump/extractconfig", params={"volume": P(optional=False)})
async def extract_config(call: Call) -> Any:
    volid = str(call.params["volume"])
    may_use(call.identity, volid, owner_of(volid))
    archive = call.cluster.archive(call.node, volid)
    shown = guest.described(archive.record, archive.record.config)
    description = str(shown.pop("description", ""))
    comment = "".join(f"#{line}\n" for line in description.splitlines())
    return comment + "".join(f"{key}: {value}\n" for key, value in sorted(shown.items()))
