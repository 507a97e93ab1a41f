"""A lab's containers for tests: in this process, or in a child that is killed at a chosen boundary.

``python -m tests.support.machines DIRECTORY NETWORK IMAGES MOMENT N`` goes through a container's whole life; every start of a program is a
boundary, and the process kills itself ``before``, ``during`` or ``after`` the N-th. Where there are fewer it ends with 0 and prints their number.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from flows.lab.lxc import Machines, bridge_name, names
from flows.lab.lxc.programs import Programs
from flows.lab.substance import Ended, SubstanceError
from flows.lab.world import LabContainer

T = TypeVar("T")


def record(vmid: int, network: IPv4Network, **config: Any) -> LabContainer:
    """A container whose address ends in the last digits of its VMID."""
    net0 = f"name=eth0,bridge=vmbr0,ip={network[vmid % 100 + 100]}/{network.prefixlen},gw={network[1]},type=veth"
    return LabContainer(vmid, "pve1", config={"hostname": f"ct{vmid}", "memory": 256, "cores": 1, "net0": net0, **config})


class Lab:
    """A :class:`Machines` with a loop of its own, so that tests share it. The template is VMID 9000."""

    def __init__(self, directory: Path, images: Path) -> None:
        self.directory = directory
        self._runner = asyncio.Runner()
        for offset in range(16):  # another lab may have the network
            self.network = IPv4Network((int(IPv4Network("10.214.0.0/16")[0]) + (((int(names.tag(directory)[:2], 16) + offset) % 256) << 8), 24))
            self.machines = Machines(directory, self.network, images)
            try:
                self.run(self.machines.open())
            except SubstanceError as error:
                if "already in use" not in str(error):
                    raise
            else:
                break
        else:
            raise AssertionError("no network is free")
        self.template = LabContainer(9000, "pve1", template=True)
        self.run(self.machines.template(self.template, "fabric"))

    def run(self, deed: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(deed)

    def container(self, vmid: int, *, start: bool = True, **config: Any) -> LabContainer:
        container = record(vmid, self.network, **config)
        self.run(self.machines.clone(self.template, container))
        if start:
            self.run(self.machines.start(container))
        return container

    def sh(self, container: LabContainer, script: str, *, code: int = 0, **more: Any) -> str:
        """Output of a shell script in the container, which ends with ``code``."""
        ended: Ended = self.run(self.machines.execute(container, ["sh", "-c", script], **more))
        assert ended.code == code, ended
        return ended.out.decode().strip()

    def end(self) -> None:
        self.run(self.machines.close())
        self._runner.close()


def leftovers(directory: Path) -> list[str]:
    """Everything of a lab that the machine still has; looked for by other means than the product's."""
    directory, mark = directory.resolve(), names.tag(directory)
    found = [str(path) for path in directory.glob("zlh-containers*")]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{directory}/zlh-containers" in line]
    found += [str(path) for path in [Path(f"/run/lxc/lock{directory}/zlh-containers")] if path.exists()]
    found += [name for name in os.listdir("/sys/class/net") if mark in name or name == bridge_name(directory)]
    found += [parent for parent, _, _ in os.walk("/sys/fs/cgroup") if mark in Path(parent).name]
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            state = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            texts = [Path("/proc", entry, name).read_bytes().decode(errors="replace") for name in ("cmdline", "cgroup", "environ", "mountinfo")]
        except OSError:
            continue
        if state not in "ZX" and (
            f"{directory}/zlh-containers" in texts[0] + texts[3] or mark in texts[1] or f"ZLH_LAB_DIRECTORY={directory}" in texts[2]
        ):
            found.append(f"process {entry}: {texts[0]!r}")
    return found


async def life(machines: Machines, network: IPv4Network, archive: Path) -> None:
    """One of everything."""
    template, first, second = LabContainer(9000, "pve1", template=True), record(100, network), record(101, network)
    await machines.open()
    await machines.template(template, "fabric")
    await machines.clone(template, first)
    await machines.start(first)
    await machines.execute(first, ["sh", "-c", "echo before > /root/state"])
    await machines.configure(first)
    await machines.snapshot(first, "before")
    await machines.clone(first, second)
    await machines.start(second)
    await machines.backup(second, archive, lambda _: None)
    await machines.shutdown(first, 30)
    await machines.rollback(first, "before")
    await machines.drop_snapshot(first, "before")
    await machines.stop(second)
    await machines.restore(second, archive, lambda _: None)
    await machines.start(second)
    await machines.destroy(first)
    await machines.close()


def _kill_at(moment: str, chosen: int) -> list[int]:
    count = [0]
    original = Programs.run

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def run(self: Programs, *argv: Any, **more: Any) -> Ended:
        count[0] += 1
        mine = count[0] == chosen
        if mine and moment == "before":
            die()
        if mine and moment == "during":
            asyncio.get_running_loop().call_later(0.01, die)
        ended = await original(self, *argv, **more)
        if mine:
            die()
        return ended

    Programs.run = run  # type: ignore[method-assign] # the boundary itself
    return count


def main() -> None:
    directory, network, images, moment, number = sys.argv[1:]
    count = _kill_at(moment, int(number))
    path = Path(directory)
    asyncio.run(life(Machines(path, IPv4Network(network), Path(images)), IPv4Network(network), path / "archive.tar.zst"))
    print(count[0])


if __name__ == "__main__":
    main()
