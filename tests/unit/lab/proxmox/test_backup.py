"""Backups and restores: what the log says, what the storage holds, who may, and what is refused in which words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.lab.faults import Faults, Mode
from flows.lab.proxmox import Proxmox
from flows.lab.proxmox.archives import Archive, retention, superfluous
from flows.lab.world import LabAgent, LabContainer

from .conftest import NET0, Api

CONTENT = "nodes/pve1/storage/local/content"


async def backup(api: Api, vmid: int = 10000, **params: Any) -> tuple[str, list[str]]:
    """How a job ended, and its log."""
    upid = await api.post("nodes/pve1/vzdump", vmid=str(vmid), storage="local", compress="zstd", **params)
    status = await api.end(upid)
    return status, [line["t"] for line in await api.get(f"nodes/pve1/tasks/{upid}/log", limit=0)]


async def volumes(api: Api, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await api.get(CONTENT, content="backup", **params)
    return found


async def test_log_and_content_of_a_backup(api: Api) -> None:
    await api.ready(running=True)
    status, log = await backup(api, mode="snapshot", **{"notes-template": "{{guestname}} of {{node}}\\nsecond", "protected": 1})
    assert status == "OK"
    (volume,) = await volumes(api)
    name = volume["volid"].removeprefix("local:backup/")
    assert re.fullmatch(r"vzdump-lxc-10000-\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d\.tar\.zst", name)
    assert f"INFO: creating vzdump archive '/var/lib/vz/dump/{name}'" in log
    assert log[0].startswith("INFO: starting new backup job: vzdump 10000 --compress zstd --mode snapshot")
    wanted = ["Starting Backup of VM 10000 (lxc)", "status = running", "backup mode: snapshot", "Finished Backup of VM 10000 (00:00:0"]
    assert [w for w in wanted if not any(w in line for line in log)] == []
    assert log[-2:] == ["INFO: Backup job finished successfully", "TASK OK"]
    assert volume["vmid"] == 10000 and volume["size"] > 0 and volume["protected"] == 1 and volume["notes"] == "zlh-game-10000 of pve1"
    assert (volume["format"], volume["subtype"], volume["content"]) == ("tar.zst", "lxc", "backup")
    assert await volumes(api, vmid=10001) == []
    whole = await api.get(f"{CONTENT}/{volume['volid']}")
    assert whole["notes"] == "zlh-game-10000 of pve1\nsecond" and whole["path"] == f"/var/lib/vz/dump/{name}"
    config = await api.get("nodes/pve1/vzdump/extractconfig", volume=volume["volid"])
    assert "hostname: zlh-game-10000\n" in config and "net0: name=eth0" in config


async def test_the_answer_names_no_volume_and_an_empty_job_is_no_task(api: Api) -> None:
    await api.ready()
    upid = await api.post("nodes/pve1/vzdump", vmid="10000", storage="local")
    assert re.fullmatch(r"UPID:pve1:.*:vzdump:10000:zlh@pve!autopilot:", upid)
    assert await api.end(upid) == "OK"
    assert (await volumes(api))[0]["volid"].endswith(".tar"), "without compress nothing is packed"
    assert await api.post("nodes/pve2/vzdump", vmid="10000", storage="local") == "OK", "it lives on another node"
    many = await api.post("nodes/pve1/vzdump", all=1, storage="local", compress="zstd")
    assert ":vzdump::zlh@pve!autopilot:" in many
    assert await api.end(many) == "OK"


async def test_what_fails_is_in_the_log_and_the_job_has_errors(api: Api, face: Proxmox) -> None:
    await api.ready()
    status, log = await backup(api, 999)
    assert status == "job errors" and "ERROR: Backup of VM 999 failed - unable to find VM '999'" in log
    face.cluster.world.containers[10000].lock = "snapshot"
    status, log = await backup(api)
    assert status == "job errors" and "ERROR: Backup of VM 10000 failed - CT is locked (snapshot)" in log
    assert face.cluster.world.containers[10000].lock == "snapshot" and await volumes(api) == []
    wrong = await api.done("post", "nodes/pve1/vzdump", vmid="10000", storage="local-lvm")
    assert wrong == "could not get storage information for 'local-lvm': can't use storage 'local-lvm' for backups - wrong content type"


async def test_the_lock_while_it_runs_and_the_node_wide_queue(api: Api, face: Proxmox) -> None:
    await api.ready(10000)
    await api.ready(10001)
    object.__setattr__(face.cluster.times, "backup_s", 0.4)
    first = await api.post("nodes/pve1/vzdump", vmid="10000", storage="local", compress="zstd")
    second = await api.post("nodes/pve1/vzdump", vmid="10001", storage="local", compress="zstd")
    third = await api.post("nodes/pve1/vzdump", vmid="10001", storage="local", compress="zstd", lockwait=0)
    while (await api.get("nodes/pve1/lxc/10000/config")).get("lock") != "backup":
        await asyncio.sleep(0.01)
    assert "lock" not in await api.get("nodes/pve1/lxc/10001/config"), "it waits"
    assert await api.done("post", "nodes/pve1/lxc/10000/status/start") == "CT is locked (backup)"
    assert (await api.refused("delete", "nodes/pve1/lxc/10000")).content == "CT is locked (backup)"
    assert await api.end(third) == "unexpected status"
    assert await api.end(first) == "OK" and await api.end(second) == "OK"
    log = [line["t"] for line in await api.get(f"nodes/pve1/tasks/{second}/log")]
    assert log[:2] == ["INFO: trying to get global lock - waiting...", "INFO: got global lock"]
    assert "lock" not in await api.get("nodes/pve1/lxc/10000/config")


async def test_stop_mode_and_an_interrupted_job(api: Api, face: Proxmox) -> None:
    path = await api.ready(running=True)
    status, log = await backup(api, mode="stop")
    assert status == "OK" and "INFO: stopping virtual guest" in log and "INFO: restarting vm" in log
    assert (await api.get(f"{path}/status/current"))["status"] == "running"
    object.__setattr__(face.cluster.times, "backup_s", 30.0)
    upid = await api.post("nodes/pve1/vzdump", vmid="10000", storage="local", compress="zstd")
    while (await api.get(f"{path}/config")).get("lock") != "backup":
        await asyncio.sleep(0.01)
    await api.delete(f"nodes/pve1/tasks/{upid}")
    assert await api.end(upid) == "received interrupt"
    assert "lock" not in await api.get(f"{path}/config") and len(await volumes(api)) == 1


async def test_a_worker_that_is_killed_leaves_the_lock(api: Api, faults: Faults) -> None:
    path = await api.ready()
    faults.arm("proxmox", Mode.DIE_LOCKED, call="POST /nodes/pve1/vzdump", count=1)
    assert (await backup(api))[0] == "unexpected status"
    assert (await api.get(f"{path}/config"))["lock"] == "backup" and await volumes(api) == []


async def test_parameters_and_rights(api: Api, person: Api, caller: Callable[[str], Api]) -> None:
    await api.ready()
    url = "nodes/pve1/vzdump"
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({}, {"vmid": "property is missing"}),
        ({"vmid": "10000", "all": 1}, {"all": "option conflicts with option 'vmid'"}),
        ({"vmid": "10000", "protected": 1}, {"storage": "missing property - 'protected' requires this property"}),
        ({"vmid": "10000", "tmpdir": "/tmp"}, {"tmpdir": "Only root may set this option."}),  # noqa: S108 - what the request says
        ({"vmid": "10000", "colour": "red"}, {"colour": "property is not defined in schema and the schema does not allow additional properties"}),
        ({"vmid": "10000", "storage": "local", "notes-template": "{{secret}}"}, {"notes-template": "found unknown: secret\n"}),
    ]
    for params, errors in cases:
        refused = await api.refused("post", url, **params)
        assert (refused.status_code, refused.errors) == (400, errors)
    assert (await api.refused("post", url, vmid="10000", bwlimit=5)).content == "Permission check failed (/, Sys.Modify)"
    assert (await api.refused("post", url, vmid="10000", storage="local", **{"prune-backups": "keep-last=1"})).status_code == 403
    auditor = caller("auditor")
    assert (await auditor.refused("post", url, vmid="10000")).content == "Permission check failed (/storage/local, Datastore.AllocateSpace)"
    assert (await backup(api))[0] == "OK"
    assert await person.get(CONTENT, content="backup") and (await auditor.refused("get", CONTENT)).status_code == 403
    assert await volumes(caller("storer")) == [], "without VM.Backup on its owner nobody sees one"
    narrow = caller("narrow")
    assert (await narrow.refused("delete", f"{CONTENT}/{(await volumes(api))[0]['volid']}")).status_code == 403


async def test_pruning(person: Api, api: Api) -> None:
    await api.ready()
    for _ in range(2):
        assert (await backup(api))[0] == "OK"
    oldest = (await volumes(api))[0]["volid"]
    await api.put(f"{CONTENT}/{oldest}", protected=1, notes="keep me")
    assert (await backup(api))[0] == "OK"
    status, log = await backup(person, **{"prune-backups": "keep-last=1"})
    assert status == "OK" and "INFO: pruned 2 backup(s) not covered by keep-retention policy" in log
    left = [v["volid"] for v in await volumes(api)]
    assert len(left) == 2 and left[0] == oldest, "a protected one stays, and counts for none"


def test_which_backups_no_rule_keeps() -> None:
    def made(ctime: int) -> Archive:
        record = LabContainer(100, "pve1")
        return Archive(f"local:backup/vzdump-lxc-100-{ctime}.tar.zst", "pve1", 100, ctime, 1, record, Path())

    day = 86_400
    archives = [made(t) for t in (0, day, day + 60, 2 * day, 2 * day + 60, 2 * day + 120)]
    assert superfluous(archives, retention("keep-all=1")) == [] and superfluous(archives, retention("keep-last=0")) == []
    assert [a.ctime for a in superfluous(archives, retention("keep-last=2,keep-daily=2"))] == [2 * day, day]
    assert [a.ctime for a in superfluous(archives, retention("keep-daily=1"))] == [2 * day + 60, 2 * day, day + 60, day, 0]


async def test_deleting_a_backup(api: Api) -> None:
    await api.ready()
    await backup(api)
    volid = (await volumes(api))[0]["volid"]
    await api.put(f"{CONTENT}/{volid}", protected=1)
    name = volid.removeprefix("local:")
    assert await api.done("delete", f"{CONTENT}/{volid}") == f"cannot remove protected volume '{name}' on 'local'"
    assert (await api.refused("delete", f"{CONTENT}/{volid}", delay=5)).content == f"cannot remove protected volume '{name}' on 'local'"
    await api.put(f"{CONTENT}/{volid}", protected=0)
    upid = await api.delete(f"{CONTENT}/{volid.replace('/', '%2F')}")
    assert ":imgdel:10000@local:" in upid and await api.end(upid) == "OK"
    assert await volumes(api) == []
    assert (await api.refused("delete", f"{CONTENT}/{volid}")).content == f"volume '{volid}' does not exist"
    await backup(api)
    assert await api.delete(f"{CONTENT}/{(await volumes(api))[0]['volid']}", delay=5) is None


async def restored(api: Api, vmid: int, volid: str, **params: Any) -> str:
    return await api.done("post", "nodes/pve1/lxc", vmid=vmid, ostemplate=volid, restore=1, storage="local-lvm", **params)


async def test_restore_as_a_new_container(api: Api, face: Proxmox) -> None:
    await api.ready()
    world = face.cluster.world
    world.containers[10000].agent = LabAgent("srv-1", "0.1.0", "token", workload="running")
    world.containers[10000].trusted_key = "ssh-ed25519 AAAA"
    await backup(api)
    volid = (await volumes(api))[0]["volid"]
    before = await api.get("nodes/pve1/lxc/10000/config")
    assert await restored(api, 10050, volid, unique=1, hostname="copy", memory=1024, start=1) == "OK"
    after = await api.get("nodes/pve1/lxc/10050/config")
    assert (after["hostname"], after["memory"], after["tags"]) == ("copy", 1024, "zlh") and "lock" not in after
    assert after["rootfs"] == "local-lvm:vm-10050-disk-0,size=4G" and after["net0"] != before["net0"], "unique: a new hardware address"
    copy = world.containers[10050]
    assert copy.status == "running" and copy.agent is not None and copy.agent is not world.containers[10000].agent
    assert copy.trusted_key == "ssh-ed25519 AAAA" and copy.agent.workload == "stopped"


async def test_restore_over_an_existing_one(api: Api, face: Proxmox) -> None:
    path = await api.ready()
    await backup(api)
    volid = (await volumes(api))[0]["volid"]
    assert await api.done("post", f"{path}/snapshot", snapname="old") == "OK"
    await api.put(f"{path}/config", memory=4096, net0=NET0, description="changed since")
    ask = {"vmid": 10000, "ostemplate": volid, "restore": 1, "storage": "local-lvm"}
    assert (await api.refused("post", "nodes/pve1/lxc", **ask)).content == "CT 10000 already exists on node 'pve1'"
    assert await api.done("post", f"{path}/status/start") == "OK"
    assert (await api.refused("post", "nodes/pve1/lxc", force=1, **ask)).content == "can't overwrite running container"
    assert await api.done("post", f"{path}/status/stop") == "OK"
    await api.put(f"{path}/config", protection=1)
    assert (await api.refused("post", "nodes/pve1/lxc", force=1, **ask)).content == "unable to restore CT 10000 - protection mode enabled"
    await api.put(f"{path}/config", protection=0)
    face.cluster.world.containers[10000].lock = "backup"
    assert (await api.refused("post", "nodes/pve1/lxc", force=1, **ask)).content == "unable to restore CT 10000 - CT is locked (backup)"
    face.cluster.world.containers[10000].lock = None
    assert await api.done("post", "nodes/pve1/lxc", force=1, **ask) == "OK"
    after = await api.get(f"{path}/config")
    assert after["memory"] == 512 and "description" not in after and "lock" not in after
    assert [s["name"] for s in await api.get(f"{path}/snapshot")] == ["current"], "snapshots belong to what was there before"


async def test_restores_that_fail(api: Api, face: Proxmox, faults: Faults, caller: Callable[[str], Api]) -> None:
    path = await api.ready()
    gone = "local:backup/vzdump-lxc-10000-2020_01_01-00_00_00.tar.zst"
    assert await restored(api, 10000, gone, force=1) == f"unable to restore CT 10000 - volume '{gone}' does not exist"
    assert "lock" not in await api.get(f"{path}/config"), "what was there is untouched"
    assert await restored(api, 10050, gone) == f"unable to restore CT 10050 - volume '{gone}' does not exist"
    assert 10050 not in face.cluster.world.containers
    template = "local:vztmpl/debian-13-standard_13.1-2_amd64.tar.zst"
    ask = {"vmid": 10050, "restore": 1, "storage": "local-lvm"}
    wrong = await api.refused("post", "nodes/pve1/lxc", ostemplate=template, **ask)
    assert wrong.content == f"unable to use volume {template} - content type needs to be 'backup'"
    await backup(api)
    volid = (await volumes(api))[0]["volid"]
    default = await api.refused("post", "nodes/pve1/lxc", vmid=10050, restore=1, ostemplate=volid)
    assert default.errors == {"storage": "storage 'local' does not support container directories"}
    assert (await caller("narrow").refused("post", "nodes/pve1/lxc", ostemplate=volid, **ask)).status_code == 403
    faults.arm("proxmox", Mode.DIE_LOCKED, call="POST /nodes/pve1/lxc", count=1)
    assert await restored(api, 10050, volid) == "unexpected status"
    assert (await api.get("nodes/pve1/lxc/10050/config"))["lock"] == "create", "a half restore looks like a half clone"
    faults.arm("proxmox", Mode.FAIL_TASK, call="POST /nodes/pve1/lxc", count=1)
    assert await restored(api, 10051, volid) == "unable to restore CT 10051 - lab fault"
    assert 10051 not in face.cluster.world.containers
