"""The product's own Proxmox client against the face: the lab must be good enough for it, and it for the lab's faults."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from flows.clients.proxmox import LEAST_RIGHTS, ProxmoxClient
from flows.domain.ports import CloneSpec, ContainerSpec
from flows.errors import AmbiguousEffect, AutomationError, Busy, TaskFailed, Unauthorized, Unproven, Unreachable
from flows.lab.config import DEFAULT_RIGHTS
from flows.lab.faults import Faults, Mode
from flows.lab.proxmox import Proxmox
from flows.settings import ProxmoxSettings

from .conftest import SECRET

CLONE = CloneSpec("pve1", 9000, 10000, "local-lvm", "zlh-game-10000", "zlh-op-1")
SPEC = ContainerSpec(frozenset({"zlh", "game"}), 2, 2048, 10, "vmbr0", "127.20.0.11/16", "127.20.0.1")


@pytest.fixture
async def client(face: Proxmox) -> AsyncIterator[ProxmoxClient]:
    values = {"host": face.endpoints["address"], "ca_file": face.endpoints["ca_file"], "token": SecretStr(SECRET)}
    client = ProxmoxClient(ProxmoxSettings(**values, timeout_s=5.0, poll_s=0.02))
    yield client
    await client.close()


def test_the_lab_grants_what_the_product_asks_for() -> None:
    for path, privileges in LEAST_RIGHTS.items():
        assert set(privileges) <= set(DEFAULT_RIGHTS.get(path, ())), path


@pytest.mark.parametrize("clone_s", [1.5])
async def test_a_life(client: ProxmoxClient) -> None:
    assert (await client.doctor())["rights_missing"] == []
    assert await client.proven_absent(10000, template_vmid=9000) is True
    upid = await client.clone(CLONE)
    with pytest.raises(Unproven):
        await client.proven_absent(10001, template_vmid=9000)
    assert await client.clone_tasks("pve1", 9000, int(time.time()) - 60) == [(upid, True)]
    assert (await client.config("pve1", 10000)).lock == "create"
    assert (await client.wait(upid, 5)).ok
    config = await client.config("pve1", 10000)
    assert config.lock is None and config.description.strip() == "zlh-op-1"
    for expected in (True, False):
        upid = await client.configure("pve1", 10000, SPEC) or ""
        assert bool(upid) == expected, "it converges"
        if upid:
            await client.wait(upid, 5)
    assert (await client.config("pve1", 10000)).tags == {"zlh", "game"}
    await client.wait(await client.start("pve1", 10000) or "", 5)
    view = await client.view()
    assert view.containers[10000].status == "running" and view.nodes_online == {"pve1": True, "pve2": True}
    await client.wait(await client.shutdown("pve1", 10000, 5) or "", 5)
    assert (await client.view()).last_stop_by[10000].startswith("zlh@pve")
    await client.wait(await client.destroy("pve1", 10000), 5)
    assert await client.proven_absent(10000, template_vmid=9000) is True


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        (Mode.RIGHTS_LOST, Unproven),
        (Mode.NO_QUORUM, Unproven),
        (Mode.UNREACHABLE, Unreachable),
        (Mode.EXPIRED, Unauthorized),
        (Mode.ERROR, AutomationError),
    ],
)
async def test_a_view_is_trustworthy_or_an_error(client: ProxmoxClient, faults: Faults, mode: Mode, error: type[Exception]) -> None:
    assert (await client.view()).containers
    faults.arm("proxmox", mode)
    with pytest.raises(error):
        await client.view()
    faults.clear()
    assert (await client.view()).containers


async def test_effects_under_faults(client: ProxmoxClient, faults: Faults, face: Proxmox) -> None:
    faults.arm("proxmox", Mode.LOSE_ANSWER, call="POST */clone", count=1)
    with pytest.raises(AmbiguousEffect):
        await client.clone(CLONE)
    [(upid, _)] = await client.clone_tasks("pve1", 9000, int(time.time()) - 60)
    assert (await client.wait(upid, 5)).ok
    faults.arm("proxmox", Mode.FAIL_TASK, count=1, message="startup failed")
    with pytest.raises(TaskFailed, match="startup failed"):
        await client.wait(await client.start("pve1", 10000) or "", 5)
    await face.manipulate("lock", {"vmid": 10000})
    with pytest.raises(Busy):
        await client.destroy("pve1", 10000)
