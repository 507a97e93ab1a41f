"""The literal errors: status, reason phrase, body; at once or as the end of a task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from flows.lab.proxmox import Proxmox

from .conftest import NET0, PASSWORD, Api

CT = "nodes/pve1/lxc/10000"
GONE = "Configuration file 'nodes/pve1/lxc/999.conf' does not exist"
CLONE = "nodes/pve1/lxc/9000/clone"
MINIMUM = "value must have a minimum value of "
ONLY_ROOT = "Permission check failed ({} is only allowed for root@pam)"
UNKNOWN = "property is not defined in schema and the schema does not allow additional properties"
NOT_DNS = "invalid format - value does not look like a valid DNS name\n"
NOT_CIDR = "invalid format - format error\nip: invalid format - value does not look like a valid ipv4 network configuration\n"
REFUSALS = [
    # method, path, parameters, status, text
    ("get", "nodes/pve1/lxc/999/config", {}, 500, GONE),
    ("get", "nodes/pve1/lxc/999/status/current", {}, 500, GONE),
    ("put", "nodes/pve1/lxc/999/config", {"cores": 1}, 500, GONE),
    ("delete", "nodes/pve1/lxc/999", {}, 500, GONE),
    ("post", "nodes/pve1/lxc/999/clone", {"newid": 998}, 500, GONE),
    ("get", "nodes/pve2/lxc/10000/config", {}, 500, "Configuration file 'nodes/pve2/lxc/10000.conf' does not exist"),
    ("post", CLONE, {"newid": 10000, "full": 1}, 500, "CT 10000 already exists on node 'pve1'"),
    ("post", CLONE, {"newid": 10001, "storage": "local-lvm"}, 500, "parameter 'storage' not allowed for linked clones"),
    ("post", CLONE, {"newid": 10001, "full": 1, "storage": "nope"}, 500, "storage 'nope' does not exist"),
    ("post", CLONE, {"newid": 10001, "full": 1, "target": "pve2"}, 500, "can't clone CT to node 'pve2' (CT uses local storage)"),
    ("post", CLONE, {"newid": 10001, "target": "pve9"}, 500, "no such cluster node 'pve9'"),
    ("post", "nodes/pve1/lxc/10000/clone", {"newid": 10001, "full": 1}, 500, "Full clone of a running container is only possible from a snapshot"),
    ("post", f"{CT}/status/start", {}, 500, "CT 10000 already running"),
    ("post", "nodes/pve1/lxc/999/status/stop", {}, 500, "CT 999 not running"),
    ("post", "nodes/pve1/lxc/999/status/reboot", {}, 500, "VM 999 not running"),
    ("delete", CT, {}, 500, "unable to destroy CT 10000 - container is running"),
    ("put", f"{CT}/config", {}, 500, "no options specified"),
    ("put", f"{CT}/config", {"unprivileged": 0}, 500, "unable to modify read-only option: 'unprivileged'"),
    ("put", f"{CT}/config", {"delete": "rootfs"}, 500, "unable to delete required option 'rootfs'"),
    ("put", f"{CT}/config", {"digest": "0" * 40, "cores": 2}, 500, "detected modified configuration - file changed by other user? Try again."),
    ("put", f"{CT}/config", {"net0": "name=eth0,bridge=vmbr7"}, 500, "bridge 'vmbr7' does not exist"),
    ("put", f"{CT}/resize", {"disk": "rootfs", "size": "1G"}, 500, "unable to shrink disk size"),
    ("put", f"{CT}/resize", {"disk": "rootfs", "size": "4G"}, 500, "disk is already at specified size"),
    ("post", f"{CT}/snapshot", {"snapname": "current"}, 500, "unable to use snapshot name 'current' (reserved name)"),
    ("post", f"{CT}/snapshot", {"snapname": "vzdump"}, 500, "unable to use snapshot name 'vzdump' (reserved name)"),
    ("get", "nodes/pve1/storage/nope/content", {}, 500, "storage 'nope' does not exist"),
    ("get", "nodes/pve9/lxc", {}, 500, "hostname lookup 'pve9' failed - failed to get address info for: pve9: Name or service not known"),
    ("get", "nodes/pve1/nothing", {}, 501, "Method 'GET /nodes/pve1/nothing' not implemented"),
    ("post", "version", {}, 501, "Method 'POST /version' not implemented"),
    ("put", f"{CT}/config", {"features": "nesting=1,mount=nfs"}, 403, ONLY_ROOT.format("changing feature flags (except nesting)")),
    ("put", f"{CT}/config", {"hookscript": "local:snippets/x"}, 403, ONLY_ROOT.format("changing the hookscript")),
    ("put", f"{CT}/config", {"mp0": "/srv,mp=/srv"}, 403, ONLY_ROOT.format("mount point type bind")),
]  # fmt: skip


async def test_refusals_are_literal(api: Api) -> None:
    await api.ready(running=True)
    for method, path, params, status, text in REFUSALS:
        refused = await api.refused(method, path, **params)
        assert (refused.status_code, refused.content) == (status, text), (method, path, params)


VERIFICATION = [
    ("get", "cluster/nextid", {"vmid": 10000}, {"vmid": "VM 10000 already exists"}),
    ("get", "cluster/nextid", {"vmid": 5}, {"vmid": "value must have a minimum value of 100"}),
    ("get", "cluster/nextid", {"vmid": "x"}, {"vmid": "type check ('integer') failed - got 'x'"}),
    ("get", "cluster/resources", {"type": "lxc"}, {"type": "value 'lxc' does not have a value in the enumeration 'vm, storage, node, sdn'"}),
    ("get", "version", {"x": 1}, {"x": UNKNOWN}),
    ("post", CLONE, {}, {"newid": "property is missing and it is not optional"}),
    ("post", CLONE, {"newid": 10001, "tags": "a"}, {"tags": UNKNOWN}),
    ("post", CLONE, {"newid": 10001, "hostname": "a_b"}, {"hostname": NOT_DNS}),
    ("put", f"{CT}/config", {"cores": 0, "memory": 1}, {"cores": MINIMUM + "1", "memory": MINIMUM + "16"}),
    ("put", f"{CT}/config", {"onboot": "maybe"}, {"onboot": "type check ('boolean') failed - got 'maybe'"}),
    ("put", f"{CT}/config", {"tags": "-x"}, {"tags": "invalid format - invalid characters in tag '-x'\n"}),
    ("put", f"{CT}/config", {"net[n]": "name=eth0"}, {"net[n]": UNKNOWN}),
    ("put", f"{CT}/config", {"delete": "nonsense"}, {"delete": "unknown option 'nonsense'"}),
    ("put", f"{CT}/config", {"net0": "bridge=vmbr0"}, {"net0": "invalid format - format error\nname: property is missing and it is not optional\n"}),
    ("put", f"{CT}/config", {"net0": "name=eth0,ip=10.0.0.1"}, {"net0": NOT_CIDR}),
    ("put", f"{CT}/resize", {"disk": "rootfs", "size": "big"}, {"size": "value does not match the regex pattern"}),
    ("post", f"{CT}/status/stop", {"skiplock": 1}, {"skiplock": "Only root may use this option."}),
    ("get", "nodes/pve1/tasks/UPID:x/status", {}, {"upid": "unable to parse worker upid"}),
    ("get", "nodes/pve1/tasks/UPID:pve1:00000001:00000001:00000001:vzstart:100:root@pam:/status", {}, {"upid": "no such task"}),
]  # fmt: skip


async def test_parameters_are_verified_strictly(api: Api) -> None:
    await api.ready(running=True)
    for method, path, params, errors in VERIFICATION:
        refused = await api.refused(method, path, **params)
        assert (refused.status_code, refused.content) == (400, "Parameter verification failed."), (method, path)
        assert refused.errors == errors, (method, path)


async def test_a_lock_refuses_at_once_or_in_the_task(api: Api, face: Proxmox) -> None:
    path = await api.ready()
    await face.manipulate("lock", {"vmid": 10000, "lock": "backup"})
    locked = "CT is locked (backup)"
    for method, below, params in (
        ("delete", "", {}),
        ("put", "/config", {"cores": 2}),
        ("post", "/clone", {"newid": 10001, "full": 1}),
        ("put", "/resize", {"disk": "rootfs", "size": "8G"}),
    ):
        refused = await api.refused(method, path + below, **params)
        assert (refused.status_code, refused.content) == (500, locked)
    assert await api.done("post", f"{path}/status/start") == locked
    assert await api.done("post", f"{path}/snapshot", snapname="snap") == locked
    assert (await api.get("cluster/resources", type="vm"))[-1]["lock"] == "backup"
    await face.manipulate("unlock", {"vmid": 10000})
    assert await api.done("post", f"{path}/status/start") == "OK"
    await face.manipulate("lock", {"vmid": 10000, "lock": "backup"})
    assert await api.done("post", f"{path}/status/stop") == locked
    assert await api.done("post", f"{path}/status/shutdown") == locked


async def test_errors_that_only_a_task_finds(api: Api) -> None:
    path = await api.ready()
    assert await api.done("post", "nodes/pve1/lxc/999/status/start") == GONE
    assert await api.done("post", "nodes/pve1/lxc/9000/status/start") == "you can't start a CT if it's a template"
    assert await api.done("post", f"{path}/snapshot", snapname="one") == "OK"
    assert await api.done("post", f"{path}/snapshot", snapname="one") == "snapshot name 'one' already used"
    assert await api.done("post", f"{path}/snapshot/none/rollback") == "snapshot 'none' does not exist"
    assert await api.done("delete", f"{path}/snapshot/none") == "snapshot 'none' does not exist"


async def test_protection(api: Api) -> None:
    path = await api.ready()
    await api.put(f"{path}/config", protection=1)
    assert (await api.refused("delete", path)).content == "can't remove CT 10000 - protection mode enabled"
    await api.put(f"{path}/config", protection=0)
    assert await api.done("delete", path) == "OK"


async def test_the_reason_phrase_and_the_body_carry_the_message(raw: Callable[..., Any]) -> None:
    answer = await raw("GET", "/nodes/pve1/lxc/999/config")
    assert (answer.status_code, answer.reason) == (500, GONE)
    assert answer.json() == {"data": None, "message": GONE + "\n"}
    answer = await raw("GET", "/cluster/nextid", params={"vmid": 9000})
    assert answer.json() == {"data": None, "message": "Parameter verification failed.\n", "errors": {"vmid": "VM 9000 already exists"}}
    assert (await raw("DELETE", "/nodes/pve1/lxc/999", data="x=1")).reason == "Unexpected content for method 'DELETE'"


async def test_booleans_and_lists_in_a_json_body(raw: Callable[..., Any], api: Api) -> None:
    path = await api.ready()
    answer = await raw("PUT", f"/{path}/config", json={"onboot": True, "tags": ["b", "a"], "cores": 3})
    assert (answer.status_code, answer.json()) == (200, {"data": None})
    shown = await api.get(f"{path}/config")
    assert (shown["onboot"], shown["tags"], shown["cores"]) == (1, "a;b", 3)
    assert (await raw("PUT", f"/{path}/config", data="{", headers={**answer.request.headers, "Content-Length": "1"})).status_code == 400


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "No ticket"),
        ({"Authorization": "PVEAPIToken=zlh@pve!autopilot=wrong"}, "invalid token value!"),
        ({"Authorization": "PVEAPIToken=zlh@pve!none=x"}, "no such token 'none' for user 'zlh@pve'"),
        ({"Authorization": "PVEAPIToken=zlh@pve!old=0f8d-secret"}, "token expired"),
        ({"Cookie": "PVEAuthCookie=PVE:root@pam:0::x"}, "permission denied - invalid PVE ticket"),
    ],
)
async def test_a_bad_credential_is_refused_late_and_without_a_body(raw: Callable[..., Any], headers: dict[str, str], reason: str) -> None:
    began = time.monotonic()
    answer = await raw("GET", "/version", headers=headers)
    assert (answer.status_code, answer.reason, answer.content) == (401, reason, b"")
    assert time.monotonic() - began >= 0.02


async def test_tickets(raw: Callable[..., Any], person: Api) -> None:
    assert [n["node"] for n in await person.get("nodes")] == ["pve1", "pve2"]
    await person.end(await person.clone(10000))
    made = (await raw("POST", "/access/ticket", headers={}, data={"username": "root@pam", "password": PASSWORD})).json()["data"]
    cookies = {"PVEAuthCookie": made["ticket"]}
    assert made["clustername"] == "lab" and made["username"] == "root@pam"
    without = await raw("PUT", "/nodes/pve1/lxc/10000/config", headers={}, cookies=cookies, data={"cores": 2})
    assert (without.status_code, without.reason) == (401, "Permission denied - invalid csrf token")
    token = {"CSRFPreventionToken": made["CSRFPreventionToken"]}
    assert (await raw("PUT", "/nodes/pve1/lxc/10000/config", headers=token, cookies=cookies, data={"cores": 2})).status_code == 200
    renewed = await raw("POST", "/access/ticket", headers={}, data={"username": "root", "realm": "pam", "password": made["ticket"]})
    assert renewed.status_code == 200
    wrong = await raw("POST", "/access/ticket", headers={}, data={"username": "root@pam", "password": "x"})
    assert (wrong.status_code, wrong.reason) == (401, "authentication failure")


async def test_rights(api: Api, raw: Callable[..., Any], caller: Callable[[str], Api]) -> None:
    path = await api.ready()
    auditor, nobody, narrow, noswitch = (caller(n) for n in ("auditor", "nobody", "narrow", "noswitch"))
    for who, method, below, params, text in (
        (auditor, "post", f"{path}/status/start", {}, "Permission check failed (/vms/10000, VM.PowerMgmt)"),
        (auditor, "delete", path, {}, "Permission check failed (/vms/10000, VM.Allocate)"),
        (
            auditor,
            "put",
            f"{path}/config",
            {"cores": 2},
            "Permission check failed (/vms/10000, VM.Config.Disk|VM.Config.CPU|VM.Config.Memory|VM.Config.Network|VM.Config.Options)",
        ),
        (nobody, "get", f"{path}/config", {}, "Permission check failed (/vms/10000, VM.Audit)"),
        (nobody, "get", "cluster/status", {}, "Permission check failed (/, Sys.Audit)"),
        (nobody, "get", "nodes/pve1/status", {}, "Permission check failed (/nodes/pve1, Sys.Audit)"),
        (narrow, "post", "nodes/pve1/lxc/9000/clone", {"newid": 10001}, "Permission check failed"),
        (noswitch, "put", f"{path}/config", {"net0": NET0}, "Permission check failed (/sdn/zones/localnetwork/vmbr0, SDN.Use)"),
    ):
        refused = await who.refused(method, below, **params)
        assert (refused.status_code, refused.content) == (403, text)
    assert await nobody.get("cluster/resources", type="vm") == [], "no right, no error, nothing"
    assert await nobody.get("nodes/pve1/lxc") == []
    assert await nobody.get("access/permissions") == {}
    assert await nobody.get("cluster/tasks") == []
    assert [n["node"] for n in await nobody.get("nodes")] == ["pve1", "pve2"] and "mem" not in (await nobody.get("nodes"))[0]
    assert [r["vmid"] for r in await narrow.get("cluster/resources", type="vm")] == [9000]
    held = await api.get("access/permissions")
    assert held["/vms"]["VM.Audit"] == 1 and held["/"] == {"Sys.Audit": 1} and "Sys.Audit" not in held["/vms"]
    one = await raw("GET", "/access/permissions", params={"path": "/vms/10000"})
    assert one.json()["data"]["/vms/10000"]["VM.Clone"] == 1


async def test_a_task_is_its_owners(api: Api, person: Api, caller: Callable[[str], Api]) -> None:
    upid = await api.clone(10000)
    refused = await caller("nobody").refused("get", f"nodes/pve1/tasks/{upid}/status")
    assert (refused.status_code, refused.content) == (403, "Permission check failed (/nodes/pve1, Sys.Audit)")
    assert await person.end(upid) == "OK"


async def test_two_callers_want_one_vmid(api: Api, person: Api) -> None:
    results = await asyncio.gather(api.clone(10000), person.clone(10000, source=9010, node="pve2"), return_exceptions=True)
    lost = [r for r in results if isinstance(r, BaseException)]
    assert len(lost) == 1 and "CT 10000 already exists on node" in str(lost[0])
