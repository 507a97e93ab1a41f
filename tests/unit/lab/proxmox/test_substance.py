"""The face asks what stands behind the records for every deed, and believes it rather than the records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from flows.lab import proxmox
from flows.lab.config import LabConfig
from flows.lab.faults import Faults
from flows.lab.part import PartError
from flows.lab.substance import Records, SubstanceError
from flows.lab.world import LabContainer, World

from .conftest import Api


class Solid(Records):
    """Remembers what it was asked; ``alive`` is what really runs. A deed in ``broken`` fails, one in ``slow`` takes forever."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.alive: set[int] = set()
        self.made: set[int] = set()
        self.broken: set[str] = set()
        self.slow: set[str] = set()
        self.stubborn = False

    async def _note(self, deed: str, container: LabContainer) -> None:
        self.asked.append((deed, container.vmid))
        if deed in self.broken:
            raise SubstanceError(f"{deed} is broken")
        if deed in self.slow:
            await asyncio.sleep(60)

    async def template(self, container: LabContainer, flavor: str) -> None:
        await self._note(f"template {flavor}", container)

    async def clone(self, source: LabContainer, target: LabContainer, snapshot: str | None = None) -> None:
        self.made.add(target.vmid)
        await self._note("clone", target)

    async def configure(self, container: LabContainer) -> None:
        await self._note("configure", container)

    async def start(self, container: LabContainer) -> None:
        await self._note("start", container)
        self.alive.add(container.vmid)

    async def stop(self, container: LabContainer) -> None:
        await self._note("stop", container)
        self.alive.discard(container.vmid)

    async def shutdown(self, container: LabContainer, timeout_s: float) -> bool:
        await self._note(f"shutdown {timeout_s:g}", container)
        if not self.stubborn:
            self.alive.discard(container.vmid)
        return not self.stubborn

    async def destroy(self, container: LabContainer) -> None:
        await self._note("destroy", container)
        self.made.discard(container.vmid)

    async def snapshot(self, container: LabContainer, name: str) -> None:
        await self._note(f"snapshot {name}", container)

    async def rollback(self, container: LabContainer, name: str) -> None:
        await self._note(f"rollback {name}", container)

    async def drop_snapshot(self, container: LabContainer, name: str) -> None:
        await self._note(f"drop {name}", container)

    async def running(self, container: LabContainer) -> bool:
        return container.vmid in self.alive


@pytest.fixture
def solid() -> Solid:
    return Solid()


@pytest.fixture
async def face(config: LabConfig, faults: Faults, solid: Solid) -> AsyncIterator[proxmox.Proxmox]:
    part = await proxmox.start(config, World(solid), faults)
    assert [deed for deed, _ in solid.asked] == ["template fabric", "template dev"] * 2
    solid.asked.clear()
    yield part
    await part.stop()


async def test_every_deed_is_asked_for(api: Api, solid: Solid) -> None:
    path = await api.ready(running=True)
    assert await api.done("post", f"{path}/snapshot", snapname="one") == "OK"
    assert await api.done("post", f"{path}/snapshot/one/rollback", start=1) == "OK"
    assert await api.done("delete", f"{path}/snapshot/one") == "OK"
    assert await api.done("put", f"{path}/resize", disk="rootfs", size="+1G") == "OK"
    assert await api.done("post", f"{path}/status/reboot", timeout=7) == "OK"
    assert await api.done("post", f"{path}/status/shutdown", timeout=9) == "OK"
    assert await api.done("delete", path) == "OK"
    deeds = [deed for deed, vmid in solid.asked if vmid == 10000]
    assert deeds == (
        "clone,configure,start,snapshot one,stop,rollback one,configure,start,drop one,configure,shutdown 7,start,shutdown 9,stop,destroy".split(",")
    )


async def test_a_container_that_died_shows_stopped_everywhere(api: Api, solid: Solid) -> None:
    path = await api.ready(running=True)
    solid.alive.clear()
    assert (await api.get(f"{path}/status/current"))["status"] == "stopped"
    solid.alive.add(10000)
    listed = [c["status"] for c in await api.get("cluster/resources", type="vm") if c["vmid"] == 10000]
    assert listed == ["running"], "and one that was started at the node runs"
    solid.alive.clear()
    assert [c["status"] for c in await api.get("nodes/pve1/lxc") if c["vmid"] == 10000] == ["stopped"]
    assert (await api.refused("post", f"{path}/status/stop")).content == "CT 10000 not running"
    solid.alive.add(10000)
    assert (await api.refused("post", f"{path}/status/start")).content == "CT 10000 already running"


async def test_a_failed_deed_ends_the_task_with_its_text_and_leaves_the_record(api: Api, solid: Solid, face: proxmox.Proxmox) -> None:
    path = await api.ready()
    solid.broken = {"start", "configure", "snapshot bad"}
    assert await api.done("post", f"{path}/status/start") == "start is broken"
    assert (await api.get(f"{path}/status/current"))["status"] == "stopped"
    assert (await api.refused("put", f"{path}/config", memory=4096)).content == "configure is broken"
    assert (await api.get(f"{path}/config"))["memory"] == 512
    assert await api.done("put", f"{path}/resize", disk="rootfs", size="+1G") == "configure is broken"
    assert (await api.get(f"{path}/config"))["rootfs"].endswith("size=4G")
    assert await api.done("post", f"{path}/snapshot", snapname="bad") == "snapshot bad is broken"
    assert [s["name"] for s in await api.get(f"{path}/snapshot")] == ["current"] and "lock" not in await api.get(f"{path}/config")
    with pytest.raises(PartError, match="start is broken"):
        await face.manipulate("start", {"vmid": 10000})
    solid.broken = {"clone"}
    assert await api.end(await api.clone(10001)) == "clone failed: clone is broken"
    assert 10001 not in face.cluster.world.containers and 10001 not in solid.made


async def test_one_that_does_not_stop(api: Api, solid: Solid) -> None:
    path = await api.ready(running=True)
    solid.stubborn = True
    assert await api.done("post", f"{path}/status/shutdown", timeout=3) == "container did not stop"
    assert (await api.get(f"{path}/status/current"))["status"] == "running"
    assert await api.done("post", f"{path}/status/shutdown", timeout=3, forceStop=1) == "OK"
    assert solid.asked[-2:] == [("shutdown 3", 10000), ("stop", 10000)] and not solid.alive


async def test_a_clone_that_is_cancelled_or_ends_with_the_lab_leaves_nothing(
    api: Api, solid: Solid, face: proxmox.Proxmox, eventually: Callable[..., Any]
) -> None:
    solid.slow = {"clone"}
    upid = await api.clone(10000)
    await eventually(lambda: ("clone", 10000) in solid.asked)
    await api.delete(f"nodes/pve1/tasks/{upid}")
    assert await api.end(upid) == "received interrupt"
    assert not solid.made and 10000 not in face.cluster.world.containers
    await api.clone(10001)
    await eventually(lambda: ("clone", 10001) in solid.asked)
    await face.stop()
    assert not solid.made


async def test_a_person_and_a_dead_node(api: Api, solid: Solid, face: proxmox.Proxmox) -> None:
    path = await api.ready(running=True)
    await api.put(f"{path}/config", onboot=1)
    solid.asked.clear()
    await face.manipulate("start", {"vmid": 10000})
    assert solid.asked == [], "it runs already"
    await face.manipulate("down", {"node": "pve1"})
    assert ("stop", 10000) in solid.asked and not solid.alive
    await face.manipulate("up", {"node": "pve1"})
    assert solid.alive == {10000}
    await face.manipulate("destroy", {"vmid": 10000})
    assert ("destroy", 10000) in solid.asked and not solid.made
