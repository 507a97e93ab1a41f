"""What a container goes through: clone, configure, start, stop, snapshot, destroy; and how others see it meanwhile."""

from __future__ import annotations

import asyncio
import re
import time

from flows.lab.proxmox import Proxmox

from .conftest import NET0, Api

UPID = re.compile(r"UPID:pve1:[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}:vzclone:9000:zlh@pve!autopilot:")


async def test_a_half_clone_looks_finished_but_for_its_lock(api: Api) -> None:
    upid = await api.clone(10000, hostname="zlh-game-10000", description="zlh-op-1")
    assert UPID.fullmatch(upid), "the source's VMID and the token stand in the UPID"
    half = await api.get("nodes/pve1/lxc/10000/config")
    assert half["lock"] == "create"
    assert half["description"] == "zlh-op-1\n", "the file keeps a description as comment lines"
    assert half["tags"] == "template", "a clone inherits its template's tags"
    assert (await api.get("nodes/pve1/lxc/9000/config"))["lock"] == "disk"
    assert await api.end(upid) == "OK"
    whole = await api.get("nodes/pve1/lxc/10000/config")
    assert "lock" not in whole and "template" not in whole
    assert whole["hostname"] == "zlh-game-10000" and whole["unprivileged"] == 1 and whole["features"] == "nesting=1"
    assert whole["rootfs"] == "local-lvm:vm-10000-disk-0,size=4G"
    assert "lock" not in await api.get("nodes/pve1/lxc/9000/config")
    assert whole["net0"] != (await api.get("nodes/pve1/lxc/9000/config"))["net0"], "the hardware address is new"


async def test_configuration_is_normalised(api: Api) -> None:
    path = await api.ready()
    before = await api.get(f"{path}/config")
    await api.put(f"{path}/config", tags="ZLH,game;zlh  b", cores=2, memory=2048, onboot="yes", net0=NET0, features="nesting=on", delete="swap")
    after = await api.get(f"{path}/config")
    assert after["tags"] == "b;game;zlh"
    assert (after["cores"], after["memory"], after["onboot"], after["features"]) == (2, 2048, 1, "nesting=1")
    assert re.fullmatch(r"name=eth0,bridge=vmbr0,gw=127\.20\.0\.1,hwaddr=BC:24:11(:[0-9A-F]{2}){3},ip=127\.20\.0\.11/16,type=veth", after["net0"])
    assert "swap" not in after and after["digest"] != before["digest"]
    await api.put(f"{path}/config", tags=["one", "two"])
    assert (await api.get(f"{path}/config"))["tags"] == "one;two", "a repeated key is a list"


async def test_disk_grows_by_absolute_or_relative_size(api: Api) -> None:
    path = await api.ready()
    assert await api.done("put", f"{path}/resize", disk="rootfs", size="10G") == "OK"
    assert await api.done("put", f"{path}/resize", disk="rootfs", size="+512M") == "OK"
    assert (await api.get(f"{path}/config"))["rootfs"] == "local-lvm:vm-10000-disk-0,size=10752M"
    assert (await api.get(f"{path}/status/current"))["maxdisk"] == 10_752 << 20


async def test_power(api: Api, face: Proxmox) -> None:
    seen: list[tuple[int, str]] = []
    world = face.cluster.world

    async def listen(vmid: int) -> None:
        container = world.containers.get(vmid)
        seen.append((vmid, container.status if container else "gone"))

    world.subscribe(listen)
    path = await api.ready(running=True)
    current = await api.get(f"{path}/status/current")
    assert (current["status"], current["vmid"], current["name"]) == ("running", 10000, "zlh-game-10000")
    interfaces = await api.get(f"{path}/interfaces")
    assert [(i["name"], i["inet"]) for i in interfaces] == [("lo", "127.0.0.1/8"), ("eth0", "127.20.0.11/16")]
    assert world.by_address("127.20.0.11") is world.containers[10000]
    assert await api.done("post", f"{path}/status/reboot") == "OK"
    assert (await api.get(f"{path}/status/current"))["status"] == "running"
    assert await api.done("post", f"{path}/status/shutdown", timeout=5) == "OK"
    assert (await api.get(f"{path}/status/current"))["status"] == "stopped"
    assert await api.done("delete", path, purge=1) == "OK"
    assert seen[-1] == (10000, "gone")
    assert [s for v, s in seen if v == 10000][-5:] == ["stopped", "running", "stopped", "stopped", "gone"]


async def test_a_shutdown_that_takes_too_long_fails_unless_forced(api: Api, face: Proxmox) -> None:
    face.cluster.times = face.cluster.times.model_copy(update={"shutdown_s": 30.0})
    path = await api.ready(running=True)
    assert await api.done("post", f"{path}/status/shutdown", timeout=0) == "container did not stop"
    assert await api.done("post", f"{path}/status/shutdown", timeout=0, forceStop=1) == "OK"


async def test_stop_can_overrule_a_shutdown(api: Api, face: Proxmox) -> None:
    face.cluster.times = face.cluster.times.model_copy(update={"shutdown_s": 30.0})
    path = await api.ready(running=True)
    shutdown = await api.post(f"{path}/status/shutdown")
    stop = await api.done("post", f"{path}/status/stop")
    assert stop == "can't lock file '/run/lock/lxc/pve-config-10000.lock' - got timeout"
    assert await api.done("post", f"{path}/status/stop", **{"overrule-shutdown": 1}) == "OK"
    assert await api.end(shutdown) != "OK"


async def test_snapshots(api: Api) -> None:
    path = await api.ready(running=True)
    assert await api.done("post", f"{path}/snapshot", snapname="before", description="d") == "OK"
    await api.put(f"{path}/config", cores=4)
    assert await api.done("post", f"{path}/snapshot", snapname="after") == "OK"
    listed = {s["name"]: s for s in await api.get(f"{path}/snapshot")}
    assert set(listed) == {"before", "after", "current"}
    assert listed["after"]["parent"] == "before" and listed["current"]["parent"] == "after"
    assert (await api.get(f"{path}/snapshot/before/config"))["cores"] == 1
    assert (await api.get(f"{path}/config", snapshot="before"))["cores"] == 1
    assert await api.done("post", f"{path}/snapshot/before/rollback") == "OK"
    assert (await api.get(f"{path}/config"))["cores"] == 1
    assert (await api.get(f"{path}/status/current"))["status"] == "stopped"
    assert await api.done("delete", f"{path}/snapshot/before") == "OK"
    left = {s["name"]: s for s in await api.get(f"{path}/snapshot")}
    assert "before" not in left and "parent" not in left["after"] and "parent" not in left["current"]


async def test_created_from_an_archive(api: Api) -> None:
    volumes = await api.get("nodes/pve1/storage/local/content", content="vztmpl")
    upid = await api.post("nodes/pve1/lxc", vmid=10050, ostemplate=volumes[0]["volid"], rootfs="local-lvm:6", hostname="made", net0=NET0, start=1)
    assert await api.end(upid) == "OK"
    made = await api.get("nodes/pve1/lxc/10050/config")
    assert (made["unprivileged"], made["rootfs"]) == (1, "local-lvm:vm-10050-disk-0,size=6G")
    assert (await api.get("nodes/pve1/lxc/10050/status/current"))["status"] == "running"
    failed = await api.done("post", "nodes/pve1/lxc", vmid=10051, ostemplate="local:vztmpl/none.tar.zst", rootfs="local-lvm:6")
    assert failed == "unable to create CT 10051 - volume 'local:vztmpl/none.tar.zst' does not exist"
    assert 10051 not in {c["vmid"] for c in await api.get("cluster/resources", type="vm")}


async def test_what_the_listings_say(api: Api) -> None:
    path = await api.ready(running=True)
    resources = {r["vmid"]: r for r in await api.get("cluster/resources", type="vm")}
    assert set(resources) == {9000, 9001, 9010, 9011, 10000}
    mine = resources[10000]
    assert (mine["id"], mine["type"], mine["node"], mine["status"], mine["tags"], mine["template"]) == (
        "lxc/10000",
        "lxc",
        "pve1",
        "running",
        "zlh",
        0,
    )
    assert {r["type"] for r in await api.get("cluster/resources")} == {"lxc", "node", "storage"}
    assert {c["vmid"] for c in await api.get("nodes/pve1/lxc")} == {9000, 9001, 10000}
    assert [(n["node"], n["type"], n["status"]) for n in await api.get("nodes")] == [("pve1", "node", "online"), ("pve2", "node", "online")]
    assert await api.get("nodes/pve1/qemu") == []
    volumes = await api.get("nodes/pve1/storage/local-lvm/content", vmid=10000)
    assert [v["volid"] for v in volumes] == ["local-lvm:vm-10000-disk-0"]
    assert await api.get("pools") == [], "the token has no Pool.Audit"
    bridge = next(i for i in await api.get("nodes/pve1/network") if i["type"] == "bridge")
    assert bridge["iface"] == "vmbr0" and bridge["active"] == 1 and bridge["address"] and bridge["gateway"]
    assert abs((await api.get("nodes/pve1/time"))["time"] - time.time()) < 5
    assert await api.get("cluster/nextid") == 100
    assert await api.get("cluster/nextid", vmid=10001) == 10001
    assert path == "nodes/pve1/lxc/10000"


async def test_a_pool_lists_its_members(api: Api, person: Api) -> None:
    await api.end(await api.clone(10000, pool="games"))
    assert await person.get("pools") == [{"poolid": "games"}]
    assert [m["vmid"] for m in (await person.get("pools/games"))["members"]] == [10000]


async def test_tasks_are_listed_with_their_user(api: Api, person: Api) -> None:
    path = await api.ready(running=True)
    upid = await person.post(f"{path}/status/stop")
    running = {t["upid"]: t for t in await api.get("cluster/tasks")}[upid]
    assert "status" not in running and "endtime" not in running
    await api.end(upid)
    stops = [t for t in await api.get("cluster/tasks") if t["type"] == "vzstop" and t["id"] == "10000"]
    assert stops[0]["user"] == "root@pam" and stops[0]["status"] == "OK" and ":root@pam:" in upid
    ours = next(t for t in await api.get("cluster/tasks") if t["type"] == "vzclone")
    assert (ours["user"], ours["tokenid"]) == ("zlh@pve", "autopilot")
    log = await api.get(f"nodes/pve1/tasks/{upid}/log")
    assert log[-1]["t"] == "TASK OK" and log[0]["n"] == 1
    assert [t["upid"] for t in await api.get("nodes/pve1/tasks", vmid=10000, typefilter="vzstop")] == [upid]
    assert await api.get("nodes/pve1/tasks", source="active") == []


async def test_a_task_can_be_interrupted(api: Api, face: Proxmox) -> None:
    face.cluster.times = face.cluster.times.model_copy(update={"clone_s": 30.0})
    upid = await api.clone(10000)
    assert [t["upid"] for t in await api.get("nodes/pve1/tasks", source="active")] == [upid]
    await api.delete(f"nodes/pve1/tasks/{upid}")
    assert await api.end(upid) == "received interrupt"
    assert 10000 not in face.cluster.world.containers and face.cluster.world.containers[9000].lock is None


async def test_only_one_clone_per_template_and_per_storage(api: Api) -> None:
    """The template is under ``lock: disk``; another template's clone waits for the storage, not long enough."""
    first = await api.clone(10000)
    refused = await api.refused("post", "nodes/pve1/lxc/9000/clone", newid=10001, full=1)
    assert (refused.status_code, refused.content) == (500, "CT is locked (disk)")
    second = await api.clone(10001, source=9001)
    other, third = await asyncio.gather(api.clone(10002, source=9010, node="pve2"), api.end(second))
    assert third == "clone failed: can't lock file '/var/lock/pve-manager/pve-storage-local-lvm' - got timeout"
    assert [await api.end(first), await api.end(other)] == ["OK", "OK"], "another node has a storage of its own"
    assert {c["vmid"] for c in await api.get("cluster/resources", type="vm")} >= {10000, 10002}
    assert 10001 not in {c["vmid"] for c in await api.get("cluster/resources", type="vm")}
