"""Proxmox's JSON, rights and texts, without a peer."""

from __future__ import annotations

from typing import Any

import pytest
from proxmoxer.core import ResourceException

from flows.clients.proxmox import LEAST_RIGHTS, answers, rights
from flows.clients.proxmox.errors import translate
from flows.clients.proxmox.tasks import succeeded
from flows.errors import BadAnswer, BadInput, Conflict, RateLimited, Unproven

UPID = "UPID:pve1:0000C0DE:00A1B2C3:65F00000:{kind}:{vmid}:zlh@pve!autopilot:"
LXC = {"type": "lxc", "vmid": 100, "node": "pve1", "status": "running", "uptime": 5, "template": 0}


def task(kind: str, vmid: int, **more: Any) -> dict[str, Any]:
    return {"upid": UPID.format(kind=kind, vmid=vmid), "user": "zlh@pve", "tokenid": "autopilot", **more}


def test_containers_and_virtual_machines_share_their_ids() -> None:
    found, twice = answers.containers([LXC, {**LXC, "vmid": "101", "tags": "B;a", "lock": "create"}, {"type": "qemu", "vmid": 100}], "x")
    assert set(found) == {100, 101}
    assert found[101].tags == {"a", "b"}
    assert found[101].lock == "create"
    assert twice == {100}


def test_the_status_of_an_unreachable_node_is_unknown() -> None:
    found, _ = answers.containers([{**LXC, "status": "unknown"}, {**LXC, "vmid": 101, "status": None}], "x")
    assert {c.status for c in found.values()} == {"unknown"}


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        "[]",
        [1],
        [{}],
        [{**LXC, "vmid": "many"}],
        [{**LXC, "vmid": True}],
        [{**LXC, "vmid": None}],
        [{**LXC, "node": ""}],
        [{**LXC, "uptime": "?"}],
    ],
)
def test_a_list_with_a_spoilt_part_is_no_shorter_list(data: object) -> None:
    with pytest.raises(BadAnswer):
        answers.containers(data, "x")


def test_a_standalone_node_is_quorate() -> None:
    assert answers.nodes([{"type": "node", "name": "pve1", "online": 1}], "x") == ({"pve1": True}, True)
    cluster = {"type": "cluster", "name": "c", "quorate": 0}
    assert answers.nodes([cluster, {"type": "node", "name": "pve1", "online": "0"}], "x") == ({"pve1": False}, False)
    with pytest.raises(BadAnswer):
        answers.nodes([], "x")


def test_running_tasks_have_neither_end_nor_status() -> None:
    entries = answers.task_entries(
        [task("vzclone", 9000), task("vzstart", 1, status="RUNNING"), task("vzstop", 2, endtime=5, status="OK"), task("vzstop", 3, status="boom")],
        "x",
    )
    assert [e.running for e in entries] == [True, True, False, False]
    assert [(t.kind, t.vmid, t.user) for t in answers.running_tasks(entries)] == [
        ("vzclone", 9000, "zlh@pve!autopilot"),
        ("vzstart", 1, "zlh@pve!autopilot"),
    ]


def test_the_stop_that_began_last_counts() -> None:
    def stop(start: int, user: str, kind: str = "vzstop") -> dict[str, Any]:
        return {"upid": f"UPID:pve1:00000001:00000001:{start:08X}:{kind}:7:{user}:", "endtime": start, "status": "OK"}

    tasks = [stop(5, "anna@pam", "vzshutdown"), stop(9, "zlh@pve!autopilot"), stop(7, "bert@pam"), stop(8, "carl@pam", "vzstart")]
    assert answers.last_stops(answers.task_entries(tasks, "x")) == {7: "zlh@pve!autopilot"}
    undone = answers.task_entries([*tasks, stop(99, "carl@pam", "vzstart")], "x")
    assert answers.last_stops(undone) == {}, "what stopped it then does not explain why it is stopped now"
    failed = answers.task_entries([*tasks, stop(99, "carl@pam", "vzstart") | {"status": "no space"}], "x")
    assert answers.last_stops(failed) == {7: "zlh@pve!autopilot"}


@pytest.mark.parametrize("text", ["", "UPID:", None, 5, UPID, "UPID:pve1:0000C0DE:00A1B2C3:65F00000:vzstart:1:zlh@pve"])
def test_what_is_no_upid_is_refused(text: object) -> None:
    with pytest.raises(BadAnswer):
        answers.upid(text, "x")


def test_success_is_ok_or_counted_warnings() -> None:
    assert succeeded("OK") and succeeded("WARNINGS: 3")
    assert not any(succeeded(s) for s in ("", "ok", "OK ", "WARNINGS", "WARNINGS: ", "WARNINGS: many", "unexpected status", "boom"))


def test_the_most_specific_path_decides_and_must_propagate() -> None:
    held = rights.parse({"/": {"Sys.Audit": 1}, "/vms": {"VM.Audit": 1, "VM.Clone": 0}, "/vms/7": {"VM.PowerMgmt": 1}}, "x")
    assert rights.holds(held, "/vms", "VM.Audit")
    assert rights.holds(held, "/vms/8", "VM.Audit")
    assert not rights.holds(held, "/vms", "VM.Clone")  # held there, but not below
    assert not rights.holds(held, "/vms", "Sys.Audit")
    assert not rights.holds(held, "/vms/7", "VM.Audit")
    assert rights.holds(held, "/nodes/pve1", "Sys.Audit")
    with pytest.raises(Unproven, match="/vms/7"):
        rights.require(held, "x", "t")


@pytest.mark.parametrize("data", [{}, [], {"/": {}}, {"/vms": {"VM.Audit": 1}}, {"/": {"Sys.Audit": 1}, "/vms": {"VM.Audit": 0}}])
def test_too_few_rights_prove_nothing(data: object) -> None:
    with pytest.raises(Unproven):
        rights.require(rights.parse(data, "x"), "x", "zlh@pve!autopilot")


def test_the_least_rights_are_enough() -> None:
    held = rights.parse({path: dict.fromkeys(names, 1) for path, names in LEAST_RIGHTS.items()}, "x")
    rights.require(held, "x", "t")
    assert rights.missing(held) == []


def test_fields_of_a_refused_parameter_are_named() -> None:
    refused = ResourceException(400, "Bad Request", "Parameter verification failed.", errors={"hostname": "invalid format"})
    error = translate(refused, "clone", write=True, token="t")
    assert isinstance(error, BadInput) and error.field == "hostname" and "invalid format" in error.why
    taken = ResourceException(400, "Bad Request", "Parameter verification failed.", errors={"vmid": "VM 100 already exists"})
    assert isinstance(translate(taken, "nextid", write=False, token="t"), Conflict)
    unknown = ResourceException(400, "Bad Request", "Parameter verification failed.", errors={"upid": "no such task"})
    assert isinstance(translate(unknown, "task", write=False, token="t"), Unproven)
    assert isinstance(translate(ResourceException(429, "x", "slow down"), "x", write=True, token="t"), RateLimited)


def test_sizes_and_property_strings() -> None:
    assert [answers.size_gb(s) for s in ("8G", "512M", "1T", None, "odd")] == [8.0, 0.5, 1024.0, 0.0, 0.0]
    assert answers.properties("local-lvm:vm-100-disk-0,size=8G") == {"": "local-lvm:vm-100-disk-0", "size": "8G"}


def test_guests_of_a_vmid_are_found_whatever_their_kind_and_however_many() -> None:
    data = [
        {"type": "lxc", "vmid": 100, "node": "pve1"},
        {"type": "qemu", "vmid": "101", "node": "pve2"},
        {"type": "lxc", "vmid": 101, "node": "pve3"},
        {"type": "storage", "storage": "local", "node": "pve1"},
    ]
    assert answers.guests(data, 101, "whereabouts") == [("qemu", "pve2"), ("lxc", "pve3")]
    assert answers.guests(data, 102, "whereabouts") == []
    with pytest.raises(BadAnswer):
        answers.guests([{"type": "lxc", "node": "pve1"}], 100, "whereabouts")
