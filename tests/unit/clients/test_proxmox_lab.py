"""The Proxmox client against the lab's face: a cluster of two nodes with real task lists, locks, faults and people who interfere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from flows.clients.proxmox import LEAST_RIGHTS, ProxmoxClient
from flows.domain.ports import CloneSpec, ContainerSpec
from flows.errors import (
    AmbiguousEffect,
    AutomationError,
    Busy,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    MisconfiguredSetting,
    TaskFailed,
    Unauthorized,
    Unproven,
    Unreachable,
)
from flows.lab import proxmox as lab_proxmox
from flows.lab.config import LabConfig
from flows.lab.faults import Faults, Mode
from flows.lab.world import World
from flows.settings import ProxmoxSettings

SECRET = "0f8d-secret"
US = "zlh@pve!autopilot"
TIMINGS = {
    "start_s": 0.02,
    "stop_s": 0.02,
    "shutdown_s": 0.03,
    "destroy_s": 0.02,
    "refuse_s": 0.02,
    "lock_wait_s": 0.1,
    "proxy_timeout_s": 0.02,
}


class Lab:
    def __init__(self, part: lab_proxmox.Proxmox, world: World, faults: Faults, client: ProxmoxClient) -> None:
        self.part, self.world, self.faults, self.client = part, world, faults, client
        self.template = next(c.vmid for c in world.containers.values() if c.template and c.node == "pve1")
        self.spec = CloneSpec("pve1", self.template, 10_000, "local-lvm", "zlh-game-10000", "zlh-op-1")

    async def clone(self) -> None:
        await self.client.wait(await self.client.clone(self.spec), 5)

    async def start(self) -> None:
        upid = await self.client.start("pve1", 10_000)
        assert upid is not None
        await self.client.wait(upid, 5)


@pytest.fixture
def clone_s() -> float:
    return 0.1


@pytest.fixture
async def lab(tmp_path: Path, clone_s: float) -> AsyncIterator[Lab]:
    config = LabConfig.model_validate(
        {
            "state_file": tmp_path / "lab.json",
            "control": {"token": "control-token"},
            "proxmox": {
                "ca_dir": tmp_path / "ca",
                "timings": {**TIMINGS, "clone_s": clone_s},
                "tokens": [{"secret": SECRET, "rights": {path: sorted(names) for path, names in LEAST_RIGHTS.items()}}],
            },
            "bridge": {"token": "bridge-token"},
            "dns": {"tsig_secret": "c2VjcmV0"},
            "runner": {"project_dir": tmp_path / "project"},
        }
    )
    world, faults = World(), Faults()
    part = await lab_proxmox.start(config, world, faults)
    ends = part.endpoints
    client = ProxmoxClient(ProxmoxSettings(host=ends["address"], token=SecretStr(SECRET), ca_file=Path(ends["ca_file"]), timeout_s=5.0, poll_s=0.02))
    yield Lab(part, world, faults, client)
    await client.close()
    await part.stop()


async def test_the_least_rights_suffice_for_a_whole_life(lab: Lab) -> None:
    client = lab.client
    assert (await client.doctor())["rights_missing"] == []
    assert await client.proven_absent(10_000, template_vmid=lab.template)
    await lab.clone()
    spec = ContainerSpec(frozenset({"zlh", "game"}), 2, 2048, 12, "vmbr0", "127.20.0.11/16", "127.20.0.1")
    upid = await client.configure("pve1", 10_000, spec)
    assert upid is not None
    await client.wait(upid, 5)
    assert await client.configure("pve1", 10_000, spec) is None
    await lab.start()
    view = await client.view()
    assert view.containers[10_000].status == "running" and view.containers[10_000].tags == {"zlh", "game"}
    assert view.nodes_online == {"pve1": True, "pve2": True}
    assert view.duplicate_vmids == frozenset()
    down = await client.shutdown("pve1", 10_000, 5)
    assert down is not None
    await client.wait(down, 5)
    await client.wait(await client.destroy("pve1", 10_000), 5)
    assert await client.proven_absent(10_000, template_vmid=lab.template)
    assert 10_000 not in (await client.view()).containers


async def test_the_last_person_who_stopped_it_is_named(lab: Lab) -> None:
    await lab.clone()
    await lab.start()
    upid = await lab.client.stop("pve1", 10_000)
    assert upid is not None
    await lab.client.wait(upid, 5)
    assert (await lab.client.view()).last_stop_by == {10_000: US}
    await lab.start()
    await asyncio.sleep(1.1)  # UPIDs count whole seconds
    await lab.part.manipulate("stop", {"vmid": 10_000})
    assert (await lab.client.view()).last_stop_by == {10_000: "root@pam"}


@pytest.mark.parametrize("clone_s", [2.0])
async def test_a_running_clone_is_seen_and_proves_nothing(lab: Lab) -> None:
    upid = await lab.client.clone(lab.spec)
    view = await lab.client.view()
    assert [(t.kind, t.vmid, t.user) for t in view.tasks] == [("vzclone", lab.template, US)]
    assert view.containers[10_000].lock == "create"
    assert list(await lab.client.clone_tasks("pve1", lab.template, int(time.time()) - 120)) == [(upid, True)]
    with pytest.raises(Unproven, match="clone"):
        await lab.client.proven_absent(10_055, template_vmid=lab.template)
    assert (await lab.client.config("pve1", 10_000)).description == "zlh-op-1"  # looks finished, but for the lock
    await lab.client.wait(upid, 5)
    assert list(await lab.client.clone_tasks("pve1", lab.template, int(time.time()) - 120)) == [(upid, False)]
    assert await lab.client.proven_absent(10_055, template_vmid=lab.template)


async def test_a_clone_that_died_leaves_its_lock_and_its_task(lab: Lab) -> None:
    lab.faults.arm("proxmox", Mode.DIE_LOCKED, count=1)
    upid = await lab.client.clone(lab.spec)
    with pytest.raises((TaskFailed, Unproven)):
        await lab.client.wait(upid, 5)
    assert (await lab.client.config("pve1", 10_000)).lock == "create"
    assert [running for _, running in await lab.client.clone_tasks("pve1", lab.template, int(time.time()) - 120)] == [False]
    with pytest.raises(Busy, match="locked"):
        await lab.client.start("pve1", 10_000) and await lab.client.wait(await lab.client.start("pve1", 10_000) or "", 5)


async def test_lost_rights_are_unproven_not_empty(lab: Lab) -> None:
    await lab.clone()
    lab.faults.arm("proxmox", Mode.RIGHTS_LOST)
    with pytest.raises((Unproven, Forbidden)):
        await lab.client.view()
    with pytest.raises((Unproven, Forbidden)):
        await lab.client.proven_absent(10_000)


async def test_rights_lost_while_the_list_is_on_its_way_are_noticed(lab: Lab) -> None:
    await lab.clone()
    lab.faults.arm("proxmox", Mode.SLOW, call="GET /cluster/resources*", seconds=0.3)
    looking = asyncio.create_task(lab.client.view())
    await asyncio.sleep(0.15)
    lab.faults.arm("proxmox", Mode.RIGHTS_LOST)
    with pytest.raises((Unproven, Forbidden)):
        await looking


async def test_an_expired_token_names_the_setting(lab: Lab) -> None:
    lab.faults.arm("proxmox", Mode.EXPIRED)
    with pytest.raises(Unauthorized, match="ZLH_PROXMOX__TOKEN"):
        await lab.client.view()


async def test_without_quorum_nothing_is_proven_and_nothing_is_written(lab: Lab) -> None:
    lab.faults.arm("proxmox", Mode.NO_QUORUM)
    with pytest.raises(Unproven, match="quorate"):
        await lab.client.view()
    with pytest.raises(Unproven, match="quorate"):
        await lab.client.proven_absent(10_000)
    with pytest.raises(Busy, match="quorum"):
        await lab.client.clone(lab.spec)


async def test_a_lost_answer_is_ambiguous_and_the_clone_runs(lab: Lab) -> None:
    lab.faults.arm("proxmox", Mode.LOSE_ANSWER, call="POST */clone", count=1)
    with pytest.raises(AmbiguousEffect):
        await lab.client.clone(lab.spec)
    tasks = await lab.client.clone_tasks("pve1", lab.template, int(time.time()) - 120)
    assert len(tasks) == 1
    await lab.client.wait(tasks[0][0], 5)
    with pytest.raises(Conflict, match="already exists"):
        await lab.client.clone(lab.spec)


async def test_a_failed_task_carries_its_reason(lab: Lab) -> None:
    lab.faults.arm("proxmox", Mode.FAIL_TASK, call="POST */clone", count=1, message="storage 'local-lvm' is full")
    upid = await lab.client.clone(lab.spec)
    with pytest.raises(TaskFailed, match="is full"):
        await lab.client.wait(upid, 5)


async def test_a_lock_of_somebody_else_is_busy(lab: Lab) -> None:
    await lab.clone()
    await lab.part.manipulate("lock", {"vmid": 10_000, "lock": "backup"})
    with pytest.raises(Busy, match="backup"):
        await lab.client.destroy("pve1", 10_000)
    with pytest.raises(Busy, match="backup"):
        await lab.client.configure("pve1", 10_000, ContainerSpec(frozenset({"zlh"}), 1, 1024, 4, "vmbr0", "127.20.0.11/16", ""))
    with pytest.raises(Busy, match="backup"):
        upid = await lab.client.start("pve1", 10_000)
        assert upid is not None
        await lab.client.wait(upid, 5)


async def test_a_node_that_is_down_leaves_the_rest_known(lab: Lab) -> None:
    await lab.part.manipulate("down", {"node": "pve2"})
    try:
        view = await lab.client.view()
    except AutomationError as error:  # one of two nodes: the lab may call that no quorum, as Proxmox does
        assert isinstance(error, Unproven) and "quorate" in str(error)
    else:
        assert view.nodes_online["pve2"] is False
    with pytest.raises(Unreachable, match="595"):
        await lab.client.status("pve2", 9010)
    with pytest.raises((AmbiguousEffect, Busy)):
        await lab.client.start("pve2", 9010)


async def test_no_time_to_ask_again_leaves_the_answer_that_there_was(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.part.manipulate("down", {"node": "pve2"})
    session = lab.client._session
    honest = session._blocking

    def once(*arguments: Any) -> Any:
        try:
            return honest(*arguments)
        finally:
            session._connect_s = float("inf")

    monkeypatch.setattr(session, "_blocking", once)
    with pytest.raises(Unreachable, match="595"):
        await lab.client.status("pve2", 9010)


async def test_a_node_with_a_silent_daemon_gives_unknown(lab: Lab) -> None:
    lab.faults.arm("proxmox", Mode.PARTIAL, call="GET /cluster/resources*", count=1)
    view = await lab.client.view()
    assert {c.status for c in view.containers.values() if c.node == "pve2"} == {"unknown"}
    assert {c.status for c in view.containers.values() if c.node == "pve1"} == {"stopped"}


async def test_half_an_answer_is_none(lab: Lab) -> None:
    await lab.clone()
    lab.faults.arm("proxmox", Mode.PARTIAL, call="GET *lxc/10000/config*")
    with pytest.raises(Unreachable):
        await lab.client.config("pve1", 10_000)
    lab.faults.clear()
    lab.faults.arm("proxmox", Mode.PARTIAL, call="POST */status/start")
    with pytest.raises(AmbiguousEffect):
        await lab.client.start("pve1", 10_000)


async def test_only_clones_by_our_own_token_count(lab: Lab) -> None:
    async def body(task: object) -> None:
        pass

    job = lab.part.cluster.tasks.spawn("pve1", "vzclone", str(lab.template), lab_proxmox.PERSON, body).job
    assert job is not None
    await job
    assert await lab.client.clone_tasks("pve1", lab.template, int(time.time()) - 120) == []


async def test_where_a_vmid_is_and_what_is_cloning_there(lab: Lab) -> None:
    assert await lab.client.where(10_000) is None
    upid = await lab.client.clone(lab.spec)
    assert await lab.client.cloning("pve1") == [upid] and await lab.client.cloning("pve2") == []
    await lab.client.wait(upid, 5)
    assert await lab.client.cloning("pve1") == []
    assert await lab.client.where(10_000) == ("lxc", "pve1")
    lab.world.containers[10_000].node = "pve2"
    assert await lab.client.where(10_000) == ("lxc", "pve2")


async def test_a_configuration_that_changes_meanwhile_is_not_overwritten(lab: Lab) -> None:
    await lab.clone()
    lab.faults.arm("proxmox", Mode.SLOW, call="PUT */config", seconds=0.4, count=1)
    setting = asyncio.create_task(lab.client.configure("pve1", 10_000, ContainerSpec(frozenset({"zlh"}), 2, 1024, 4, "vmbr0", "127.20.0.11/16", "")))
    await asyncio.sleep(0.2)
    lab.world.containers[10_000].config["description"] = "a person was here"
    with pytest.raises(Busy, match="modified"):
        await setting
    assert (await lab.client.config("pve1", 10_000)).tags != {"zlh"}


@pytest.mark.parametrize("clone_s", [2.0])
async def test_waiting_survives_a_restart_of_the_api(lab: Lab) -> None:
    upid = await lab.client.clone(lab.spec)
    waiting = asyncio.create_task(lab.client.wait(upid, 5))
    await asyncio.sleep(0.03)
    await lab.part.restart()
    assert (await waiting).ok


@pytest.mark.parametrize("clone_s", [2.0])
async def test_waiting_for_a_silent_api_ends_at_the_deadline(lab: Lab) -> None:
    upid = await lab.client.clone(lab.spec)
    lab.faults.arm("proxmox", Mode.UNREACHABLE)
    with pytest.raises(DeadlineExceeded, match="no word"):
        await lab.client.wait(upid, 0.3)


async def test_many_calls_share_few_threads(lab: Lab) -> None:
    results = await asyncio.gather(*(lab.client.config("pve1", lab.template) for _ in range(60)))
    assert len(results) == 60


async def test_a_closed_client_says_so(lab: Lab) -> None:
    await lab.client.close()
    with pytest.raises(Unreachable, match="closed"):
        await lab.client.view()


async def test_doctor_measures_the_clock(lab: Lab) -> None:
    found = await lab.client.doctor()
    assert isinstance(found["clock_difference_s"], float) and abs(found["clock_difference_s"]) < 3
    assert found["nodes"] == {"pve1": True, "pve2": True}


async def test_a_pinned_certificate_needs_no_ca(lab: Lab) -> None:
    ends = lab.part.endpoints
    for printed, trusted in ((ends["fingerprint"], True), (":".join(["AB"] * 32), False)):
        client = ProxmoxClient(ProxmoxSettings(host=ends["address"], token=SecretStr(SECRET), fingerprint=printed, timeout_s=5.0, poll_s=0.02))
        if trusted:
            assert (await client.view()).containers is not None
        else:
            with pytest.raises(MisconfiguredSetting, match="ZLH_PROXMOX__FINGERPRINT"):
                await client.view()
            with pytest.raises(MisconfiguredSetting, match="ZLH_PROXMOX__FINGERPRINT"):
                await client.start("pve1", 10_001)
        await client.close()


def test_a_fingerprint_is_64_digits_and_no_second_proof() -> None:
    with pytest.raises(ValidationError, match="pvenode cert info"):
        ProxmoxSettings(fingerprint="ab:cd")
    with pytest.raises(ValidationError, match="both set"):
        ProxmoxSettings(fingerprint="ab" * 32, ca_file=Path("ca.pem"))
