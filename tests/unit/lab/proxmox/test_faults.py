"""Every fault that the face plays, as a client meets it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from flows.lab.config import LabConfig
from flows.lab.faults import Faults, Mode
from flows.lab.part import PartError
from flows.lab.proxmox import PERSON, Proxmox, start
from flows.lab.proxmox.tasks import Task, Tasks
from flows.lab.world import World

from .conftest import Api


async def test_unreachable_before_the_effect(api: Api, faults: Faults, face: Proxmox) -> None:
    faults.arm("proxmox", Mode.UNREACHABLE, call="POST */clone", count=1)
    with pytest.raises(requests.ConnectionError):
        await api.clone(10000)
    assert 10000 not in face.cluster.world.containers
    assert face.cluster.calls[-1]["status"] == "cut"
    assert await api.end(await api.clone(10000)) == "OK", "once was asked for"


async def test_the_answer_is_lost_after_the_effect(api: Api, faults: Faults, face: Proxmox) -> None:
    faults.arm("proxmox", Mode.LOSE_ANSWER, call="POST */clone", count=1)
    with pytest.raises(requests.ConnectionError):
        await api.clone(10000)
    assert face.cluster.world.containers[10000].lock == "create"
    tasks = [t for t in await api.get("cluster/tasks") if t["type"] == "vzclone"]
    assert await api.end(tasks[0]["upid"]) == "OK"


async def test_slow_and_hanging(api: Api, raw: Callable[..., Any], faults: Faults) -> None:
    faults.arm("proxmox", Mode.SLOW, seconds=0.1)
    began = time.monotonic()
    await api.get("version")
    assert time.monotonic() - began >= 0.1
    faults.clear()
    await api.get("version")
    faults.arm("proxmox", Mode.HANG, call="GET /version")
    with pytest.raises(requests.ReadTimeout):
        await raw("GET", "/version", timeout=0.1)


async def test_a_held_call_arrives_late_and_is_in_the_journal_of_writes(api: Api, faults: Faults, face: Proxmox) -> None:
    fault = faults.arm("proxmox", Mode.HOLD, call="POST */clone", count=1)
    held = asyncio.create_task(api.clone(10000))
    while not fault.hits:  # until it is there
        await asyncio.sleep(0.01)
    assert 10000 not in face.cluster.world.containers
    faults.clear()
    assert await api.end(await held) == "OK"
    assert [(w["call"].rpartition("/")[2], w["status"]) for w in face.inspect()["writes"]] == [("clone", 200)]


async def test_errors_on_demand(api: Api, raw: Callable[..., Any], faults: Faults) -> None:
    faults.arm("proxmox", Mode.ERROR, message="can't lock file '/run/lock/lxc/pve-config-100.lock' - got timeout", count=1)
    refused = await api.refused("get", "version")
    assert (refused.status_code, refused.content) == (500, "can't lock file '/run/lock/lxc/pve-config-100.lock' - got timeout")
    faults.arm("proxmox", Mode.ERROR, status=596, message="Connection timed out", count=1)
    answer = await raw("GET", "/version")
    assert (answer.status_code, answer.reason, answer.content) == (596, "Connection timed out", b"")
    faults.arm("proxmox", Mode.EXPIRED)
    answer = await raw("GET", "/version")
    assert (answer.status_code, answer.reason, answer.content) == (401, "token expired", b"")


async def test_lost_rights_are_an_empty_list(api: Api, faults: Faults, face: Proxmox) -> None:
    path = await api.ready()
    faults.arm("proxmox", Mode.RIGHTS_LOST)
    assert await api.get("cluster/resources", type="vm") == []
    held = await api.get("access/permissions")
    assert "/vms" not in held and held["/"] == {"Sys.Audit": 1}
    assert (await api.get("cluster/status"))[0]["quorate"] == 1, "everything else looks healthy"
    assert (await api.refused("post", f"{path}/status/start")).status_code == 403
    faults.clear()
    assert len(await api.get("cluster/resources", type="vm")) == 5


async def test_partial(api: Api, faults: Faults) -> None:
    """One node's status daemon is silent: its guests are unknown, not absent. Other answers break off in the middle."""
    faults.arm("proxmox", Mode.PARTIAL)
    states = {r["vmid"]: r["status"] for r in await api.get("cluster/resources", type="vm")}
    assert states == {9000: "stopped", 9001: "stopped", 9010: "unknown", 9011: "unknown"}
    assert (await api.refused("get", "nodes/pve2/lxc")).status_code == 596
    with pytest.raises(requests.RequestException):
        await api.get("cluster/tasks")


async def test_no_quorum(api: Api, faults: Faults) -> None:
    path = await api.ready()
    faults.arm("proxmox", Mode.NO_QUORUM)
    assert (await api.get("cluster/status"))[0]["quorate"] == 0
    for method, below, params in (("post", f"{path}/status/start", {}), ("put", f"{path}/config", {"cores": 2}), ("delete", path, {})):
        refused = await api.refused(method, below, **params)
        assert (refused.status_code, refused.content) == (500, "cluster not ready - no quorum?")
    assert (await api.get(f"{path}/config"))["hostname"] == "zlh-game-10000"


async def test_a_node_goes_down_and_comes_back(api: Api, face: Proxmox) -> None:
    path = await api.ready(running=True)
    await api.put(f"{path}/config", onboot=1)
    upid = await api.clone(10001)
    await face.manipulate("down", {"node": "pve1"})
    refused = await api.refused("get", "nodes/pve1/lxc")
    assert (refused.status_code, refused.content) == (595, "No route to host")
    assert {n["node"]: n["status"] for n in await api.get("nodes")} == {"pve1": "offline", "pve2": "online"}
    cluster = {e["name"]: e for e in await api.get("cluster/status")}
    assert (cluster["lab"]["quorate"], cluster["pve1"]["online"], cluster["pve2"]["local"]) == (1, 0, 1)
    states = {r["vmid"]: r["status"] for r in await api.get("cluster/resources", type="vm")}
    assert states[10000] == "unknown" and states[9010] == "stopped"
    await face.manipulate("up", {"node": "pve1"})
    assert (await api.get(f"{path}/status/current"))["status"] == "running", "onboot"
    assert (await api.get("nodes/pve1/lxc/10001/config"))["lock"] == "create", "its clone died with the node"
    assert await api.end(upid) == "unexpected status"
    with pytest.raises(PartError, match="there is no node 'pve9'"):
        await face.manipulate("down", {"node": "pve9"})


async def test_no_node_no_answer(api: Api, face: Proxmox) -> None:
    for node in ("pve1", "pve2"):
        await face.manipulate("down", {"node": node})
    with pytest.raises(requests.ConnectionError):
        await api.get("version")


async def test_the_next_tasks_fail(api: Api, faults: Faults, face: Proxmox) -> None:
    path = await api.ready()
    faults.arm("proxmox", Mode.FAIL_TASK, count=2, message="startup for container '10000' failed")
    for _ in range(2):
        assert await api.done("post", f"{path}/status/start") == "startup for container '10000' failed"
        assert (await api.get(f"{path}/status/current"))["status"] == "stopped"
    assert await api.done("post", f"{path}/status/start") == "OK"
    faults.arm("proxmox", Mode.FAIL_TASK, call="*/clone", message="no space left")
    upid = await api.clone(10001)
    assert await api.end(upid) == "clone failed: no space left"
    assert 10001 not in face.cluster.world.containers, "a clone that fails cleans up"
    assert (await api.get(f"nodes/pve1/tasks/{upid}/log"))[-1]["t"] == "TASK ERROR: clone failed: no space left"


async def test_a_clone_that_dies_stays_locked(api: Api, faults: Faults, face: Proxmox) -> None:
    faults.arm("proxmox", Mode.DIE_LOCKED, count=1)
    upid = await api.clone(10000, description="zlh-op-1")
    assert await api.end(upid) == "unexpected status"
    left = await api.get("nodes/pve1/lxc/10000/config")
    assert (left["lock"], left["description"]) == ("create", "zlh-op-1\n")
    assert not [t for t in await api.get("cluster/tasks") if t.get("status") is None], "no task runs"
    for force in (0, 1):
        assert (await api.refused("delete", "nodes/pve1/lxc/10000", force=force)).content == "CT is locked (create)"
    await face.manipulate("unlock", {"vmid": 10000})
    assert await api.done("delete", "nodes/pve1/lxc/10000") == "OK"
    assert await api.end(await api.clone(10000)) == "OK"


async def test_behind_our_back(api: Api, face: Proxmox) -> None:
    path = await api.ready(running=True)
    await face.manipulate("stop", {"vmid": 10000})
    assert (await api.get(f"{path}/status/current"))["status"] == "stopped"
    newest = next(t for t in await api.get("cluster/tasks") if t["type"] == "vzstop")
    assert (newest["user"], newest["id"], "tokenid" in newest) == ("root@pam", "10000", False)
    await face.manipulate("start", {"vmid": 10000})
    await face.manipulate("destroy", {"vmid": 10000})
    assert await api.get("cluster/nextid", vmid=10000) == 10000
    for op, arguments in (("stop", {"vmid": 10000}), ("shave", {"vmid": 9000}), ("lock", {"vmid": 9000, "lock": "x"})):
        with pytest.raises(PartError):
            await face.manipulate(op, arguments)


async def test_a_standalone_node_has_no_cluster_entry(config: LabConfig, faults: Faults) -> None:
    alone = config.model_copy(
        update={"proxmox": config.proxmox.model_copy(update={"cluster": None, "nodes": config.proxmox.nodes[:1], "templates": ()})}
    )
    part = await start(alone, World(), faults)
    try:
        api = Api(part, user="zlh@pve", token_name="autopilot", token_value="0f8d-secret")
        assert [e["type"] for e in await api.get("cluster/status")] == ["node"]
    finally:
        api.close()
        await part.stop()


async def test_restart_keeps_port_and_world(api: Api, face: Proxmox) -> None:
    await api.ready()
    address = face.endpoints["address"]
    await face.restart()
    assert face.endpoints["address"] == address
    api.close()
    assert (await api.get("nodes/pve1/lxc/10000/config"))["hostname"] == "zlh-game-10000"


async def test_inspection_holds_no_secret(api: Api, face: Proxmox) -> None:
    await api.ready()
    shown = str(face.inspect())
    assert "vzclone" in shown and "POST /nodes/pve1/lxc/9000/clone" in shown and "0f8d-secret" not in shown


async def test_a_task_that_is_cancelled_before_its_first_step_ends_too() -> None:
    tasks = Tasks()

    async def body(task: Task) -> None:
        raise AssertionError("it never begins")

    task = tasks.spawn("pve1", "vzstart", "100", PERSON, body)
    assert task.running and task.job is not None
    await tasks.stop()
    assert task.state()["exitstatus"] == "unexpected status" and not tasks.running()
