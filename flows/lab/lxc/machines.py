"""The real substance behind the records: one :class:`~flows.lab.lxc.machine.Machine` per VMID."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from flows.lab.lxc import archive as archives
from flows.lab.lxc import bridge, cgroups, image, layers, names, ruins, settings
from flows.lab.lxc.machine import Machine
from flows.lab.lxc.programs import Programs, missing
from flows.lab.substance import Ended, SubstanceError
from flows.lab.world import LabContainer

#: Every systemd takes a few, and all containers' roots are one user: Debian's 128 end with the fifteenth container.
_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_INSTANCES = 8_192
_NEEDED = {
    **dict.fromkeys(("lxc-start", "lxc-stop", "lxc-attach", "lxc-info", "lxc-freeze", "lxc-unfreeze", "lxc-cgroup"), "lxc"),
    "ip": "iproute2",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "tar": "tar",
    "zstd": "zstd",
    "cp": "coreutils",
}


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The file system's refusals as SubstanceError."""
    try:
        yield
    except OSError as error:
        raise SubstanceError(f"{what}: {error.strerror}: {error.filename}") from error


class Machines:
    """The substance of one lab in ``directory``; ``images`` may be shared by labs. Nothing survives :meth:`close` but the images."""

    def __init__(self, directory: Path, network: IPv4Network, images: Path) -> None:
        self.directory, self.network, self.images = directory.resolve(), network, images
        self.bridge, self.address = names.bridge_name(directory), network[1]
        self._programs = Programs(self.directory)
        self._machines: dict[int, Machine] = {}
        self._image = Path()
        self._hierarchies = cgroups.Hierarchies(frozenset(), frozenset(), ())

    async def open(self) -> None:
        """Removes what a killed predecessor left, builds the image where it is missing (a minute or two, once), brings the bridge up."""
        self._refuse_host()
        with _told("lab"):
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.directory in ruins.held or (descriptor := ruins.hold(self.directory)) is None:
                raise SubstanceError(f"{self.directory}: a lab lives there already · stop it, or use another directory")
        ruins.held[self.directory] = descriptor
        self._programs.closed = False
        try:
            await asyncio.to_thread(ruins.clean, self.directory)
            self._image = await image.ensure(self.images, self._programs)
            with _told("lab"):
                self._make_room()
                self._hierarchies = cgroups.detect()
                names.home(self.directory).mkdir(mode=0o700)  # programs in containers are set-uid, and nobody patches them
                (names.home(self.directory) / "machines").mkdir()
                (names.home(self.directory) / "scratch").mkdir(mode=0o700)
            await bridge.up(self.bridge, self.network, self._programs)
        except BaseException:
            await asyncio.shield(self.close())
            raise

    def _refuse_host(self) -> None:
        if os.geteuid() != 0:
            raise SubstanceError("fleet lxc: needs root · run as root, or use fleet sim")
        if lacking := missing(list(_NEEDED)):
            packages = sorted({_NEEDED[program] for program in lacking})
            raise SubstanceError(f"fleet lxc: {', '.join(lacking)} not installed · apt-get install {' '.join(packages)}")
        for path in (self.directory, self.images):
            if not names.usable(path):
                raise SubstanceError(f"{path}: fleet lxc cannot use such a path · letters, digits and ./_@+=~- only")

    @staticmethod
    def _make_room() -> None:
        if int(_INOTIFY.read_text()) < _INSTANCES:
            _INOTIFY.write_text(str(_INSTANCES))  # stays so: it costs nothing, and another lab may count on it

    async def close(self) -> None:
        self._programs.closed = True
        if self.directory in ruins.held:
            try:
                await asyncio.to_thread(ruins.clean, self.directory)
            finally:
                os.close(ruins.held.pop(self.directory))
                self._machines.clear()

    def _machine(self, container: LabContainer) -> Machine:
        if container.vmid not in self._machines:
            self._machines[container.vmid] = Machine(self.directory, container.vmid, self._programs)
        return self._machines[container.vmid]

    def _present(self, container: LabContainer) -> Machine:
        machine = self._machine(container)
        if not machine.exists:
            raise SubstanceError(f"CT {container.vmid} has no root file system")
        return machine

    def _scratch(self) -> Path:
        return names.home(self.directory) / "scratch" / uuid.uuid4().hex

    async def template(self, container: LabContainer, flavor: str) -> None:
        """Every flavor starts from the image as it is; roles make the difference, as they do on a real template's clone."""
        machine = self._machine(container)
        with _told(f"template {container.vmid}"):
            if not machine.exists:
                layers.make(machine.home)

    async def clone(self, source: LabContainer, target: LabContainer, snapshot: str | None = None) -> None:
        machine, fresh = self._present(source), self._machine(target)
        if fresh.home.exists():
            raise SubstanceError(f"CT {target.vmid} already exists")
        with _told(f"clone of CT {source.vmid}"):
            if snapshot is None:
                await machine.copy(fresh.home)
            else:
                await layers.copy(self._snapshot(machine, snapshot), fresh.home, self._programs)

    @staticmethod
    def _snapshot(machine: Machine, name: str) -> Path:
        if not (path := machine.snapshot(name)).is_dir():
            raise SubstanceError(f"snapshot '{name}' does not exist")
        return path

    async def configure(self, container: LabContainer) -> None:
        machine = self._machine(container)
        limits = self._hierarchies.limits(*settings.wants(container.config))
        if machine.running:
            await machine.limit(limits)

    def _card(self, container: LabContainer) -> settings.Card | None:
        return settings.card(str(container.config.get("net0") or ""), self.network, names.hardware_address(self.directory, container.vmid))

    def _configuration(self, container: LabContainer, machine: Machine, card: settings.Card | None) -> str:
        config: dict[str, Any] = container.config
        return settings.text(
            name=machine.name,
            host=settings.hostname(config, container.vmid),
            root=layers.root(machine.home, self._image),
            net=card,
            bridge=self.bridge,
            veth=names.veth_name(self.directory, container.vmid),
            limits=self._hierarchies.limits(*settings.wants(config)),
            devices=self._hierarchies.devices,
            console=str(machine.console),
        )

    async def start(self, container: LabContainer) -> None:
        machine, card = self._present(container), self._card(container)
        configuration = self._configuration(container, machine, card)
        if card is not None and card.address is not None and not machine.running:
            # The address may have been another container's a moment ago: this machine must not go on looking for that one.
            await self._programs.do("ip", "neighbour", "flush", "to", str(card.address.ip), "dev", self.bridge, timeout_s=10)
        with _told(f"start of CT {container.vmid}"):
            await machine.start(configuration)

    async def stop(self, container: LabContainer) -> None:
        await self._machine(container).stop()

    async def shutdown(self, container: LabContainer, timeout_s: float) -> bool:
        return await self._machine(container).shutdown(timeout_s)

    async def destroy(self, container: LabContainer) -> None:
        with _told(f"destroying CT {container.vmid}"):
            await self._machine(container).remove()
        self._machines.pop(container.vmid, None)

    async def snapshot(self, container: LabContainer, name: str) -> None:
        machine = self._present(container)
        path = machine.snapshot(name)
        if path.exists():
            raise SubstanceError(f"snapshot '{name}' already exists")
        with _told(f"snapshot {name} of CT {container.vmid}"):
            await machine.copy(path)

    async def rollback(self, container: LabContainer, name: str) -> None:
        machine = self._present(container)
        self._refuse_running(machine)
        with _told(f"rollback of CT {container.vmid}"):
            fresh = machine.home / f".rollback-{uuid.uuid4().hex[:8]}"
            await layers.copy(self._snapshot(machine, name), fresh, self._programs)
            await layers.replace(machine.home, fresh)

    @staticmethod
    def _refuse_running(machine: Machine) -> None:
        if machine.running:
            raise SubstanceError(f"CT {machine.vmid} is running · stop it first")

    async def drop_snapshot(self, container: LabContainer, name: str) -> None:
        machine = self._present(container)
        with _told(f"snapshot {name} of CT {container.vmid}"):
            path = self._snapshot(machine, name)
            trash = path.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
            path.rename(trash)
            await layers.discard(trash)

    async def backup(self, container: LabContainer, archive: Path, say: Callable[[str], None]) -> None:
        """Of a running container: what it holds at one moment, for which it stands still."""
        machine = self._present(container)
        scratch = self._scratch()
        layer = machine.home
        with _told(f"backup of CT {container.vmid}"):
            scratch.mkdir(parents=True)
            try:
                if machine.running:
                    say("suspend vm to make snapshot")
                    layer = scratch / "layer"
                    await machine.copy(layer)
                    say("resume vm")
                say(f"creating vzdump archive '{archive}'")
                (scratch / "archive").mkdir()
                size = await archives.write(archive, layer, self._image, container.config, scratch / "archive", self._programs)
                say(f"archive file size: {size >> 20}MB")
            finally:
                await layers.discard(scratch)

    async def restore(self, container: LabContainer, archive: Path, say: Callable[[str], None]) -> None:
        """As Proxmox: the snapshots of the container that was there are gone."""
        machine = self._machine(container)
        self._refuse_running(machine)
        with _told(f"restore of CT {container.vmid}"):
            await archives.configuration(archive, self._programs)
            scratch = self._scratch()
            say(f"extracting archive '{archive}'")
            await archives.extract(archive, scratch, self._programs)
            if machine.exists:
                await layers.replace(machine.home, scratch)
                await layers.discard(machine.home / "snapshots")
            else:
                scratch.rename(machine.home)

    async def configuration(self, archive: Path) -> dict[str, Any]:
        """What :meth:`backup` found in ``container.config``. Raises SubstanceError."""
        return await archives.configuration(archive, self._programs)

    async def running(self, container: LabContainer) -> bool:
        return self._machine(container).running

    async def execute(self, container: LabContainer, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0) -> Ended:
        return await self._machine(container).execute(argv, stdin=stdin, timeout_s=timeout_s)
