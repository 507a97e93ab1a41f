"""The cluster behind the face: configuration, world, tasks, locks. Handlers get it with each call."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from flows.lab.config import ProxmoxConfig, StorageConfig, TemplateConfig
from flows.lab.faults import Faults
from flows.lab.proxmox import guest
from flows.lab.proxmox.archives import Archive, Archives
from flows.lab.proxmox.auth import Auth
from flows.lab.proxmox.errors import PveError, TaskDied
from flows.lab.proxmox.tasks import Task, Tasks
from flows.lab.substance import Substance
from flows.lab.world import LabContainer, LabNode, World

ARCHIVE = "debian-13-standard_13.1-2_amd64.tar.zst"


class Cluster:
    """Seeds the world with the configured nodes and templates. ``calls`` keeps the last requests for judges, ``writes`` those that were to change
    something."""

    def __init__(self, config: ProxmoxConfig, world: World, faults: Faults, directory: Path | None = None) -> None:
        self.config, self.world, self.faults, self.times = config, world, faults, config.timings
        self.auth, self.tasks = Auth(config), Tasks()
        self.calls: deque[dict[str, Any]] = deque(maxlen=1_000)
        self.writes: deque[dict[str, Any]] = deque(maxlen=10_000)
        self.started = time.time()
        self.fingerprint = ""
        self.archives = Archives(directory)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        for node in config.nodes:
            world.nodes.setdefault(node.name, LabNode(node.name, True, node.memory_mb, node.cores, node.disk_gb))
        for template in config.templates:
            world.containers.setdefault(template.vmid, self._template(template))

    def _template(self, template: TemplateConfig) -> LabContainer:
        storage = next(
            (s.name for s in self.config.storages if "rootdir" in s.content and template.node in (s.nodes or [template.node])), "local-lvm"
        )
        config = {
            "arch": "amd64",
            "cores": template.cores,
            "features": "nesting=1",
            "hostname": f"template-{template.flavor}",
            "memory": template.memory_mb,
            "net0": guest.net(f"name=eth0,bridge={self.config.bridges[0] if self.config.bridges else 'vmbr0'},ip=dhcp"),
            "ostype": "debian",
            "rootfs": f"{storage}:base-{template.vmid}-disk-0,size={template.disk_gb}G",
            "swap": 512,
            "unprivileged": 1,
        }
        if template.tags:
            config["tags"] = guest.tag_list(";".join(template.tags))
        return LabContainer(template.vmid, template.node, template=True, config=config)

    @property
    def substance(self) -> Substance:
        """What stands behind the records."""
        return self.world.substance

    async def open(self) -> None:
        """What stands behind the templates. Raises SubstanceError."""
        for template in self.config.templates:
            await self.substance.template(self.world.containers[template.vmid], template.flavor)

    # ── nodes and quorum ────────────────────────────────────────────────────────────────────────────
    @property
    def entrance(self) -> str:
        """The node that answers: the first that is online. The face's address moves as a floating one would."""
        return next((n.name for n in self.world.nodes.values() if n.online), next(iter(self.world.nodes)))

    def quorate(self) -> bool:
        """One vote per node, and a QDevice's where their number is even: a cluster of two survives the loss of one."""
        online = sum(n.online for n in self.world.nodes.values())
        votes = len(self.world.nodes) + (len(self.world.nodes) % 2 == 0)
        return 2 * (online + (votes > len(self.world.nodes))) > votes

    # ── containers ──────────────────────────────────────────────────────────────────────────────────
    def on(self, node: str) -> Iterator[LabContainer]:
        return (c for c in sorted(self.world.containers.values(), key=lambda c: c.vmid) if c.node == node)

    def container(self, node: str, vmid: int) -> LabContainer:
        """Raises PveError 500 with Proxmox's text, which is not a 404."""
        container = self.world.containers.get(vmid)
        if container is None or container.node != node:
            raise PveError(500, f"Configuration file 'nodes/{node}/lxc/{vmid}.conf' does not exist")
        return container

    async def refresh(self, containers: Iterable[LabContainer]) -> None:
        """Brings records in line with what really runs: a container may have died, or been halted from inside. One whose lock file is
        held is left to its holder. Raises SubstanceError."""
        asked = [c for c in containers if not c.template and not self._locks[self._config_file(c.vmid)].locked()]
        found = await asyncio.gather(*(self.substance.running(c) for c in asked))
        for container, running in zip(asked, found, strict=True):
            if self.world.containers.get(container.vmid) is container and not self._locks[self._config_file(container.vmid)].locked():
                await self._found(container, running)

    async def refresh_held(self, container: LabContainer) -> None:
        """The same for the holder of its lock file."""
        await self._found(container, await self.substance.running(container))

    async def _found(self, container: LabContainer, running: bool) -> None:
        if running == (container.status == "running"):
            return
        if running:
            container.start()
        else:
            container.stop()
        await self.world.changed(container.vmid)

    def check_lock(self, container: LabContainer, *allowed: str) -> None:
        """Raises PveError 500; in a task the same text becomes its end."""
        if container.lock and container.lock not in allowed:
            raise PveError(500, f"CT is locked ({container.lock})")

    def check_free(self, vmid: int) -> None:
        taken = self.world.containers.get(vmid)
        if taken is not None:
            raise PveError(500, f"CT {vmid} already exists on node '{taken.node}'")

    @contextlib.asynccontextmanager
    async def _locked(self, name: str, wait_s: float, scope: str = "") -> AsyncIterator[None]:
        lock = self._locks[scope + name]
        try:
            async with asyncio.timeout(wait_s):
                await lock.acquire()
        except TimeoutError:
            raise PveError(500, f"can't lock file '{name}' - got timeout") from None
        try:
            yield
        finally:
            lock.release()

    def config_lock(self, vmid: int) -> contextlib.AbstractAsyncContextManager[None]:
        """The lock file of a configuration, held for the length of a change or of a start."""
        return self._locked(self._config_file(vmid), self.times.lock_wait_s)

    @staticmethod
    def _config_file(vmid: int) -> str:
        return f"/run/lock/lxc/pve-config-{vmid}.lock"

    def storage_lock(self, node: str, storage: str) -> contextlib.AbstractAsyncContextManager[None]:
        """One per storage of a node, or of the cluster where it is shared."""
        scope = "" if self.storage(storage, node).shared else node
        return self._locked(f"/var/lock/pve-manager/pve-storage-{storage}", self.times.storage_lock_wait_s, scope)

    @contextlib.asynccontextmanager
    async def vzdump_lock(self, node: str, wait_s: float, task: Task) -> AsyncIterator[None]:
        """One backup job per node. A job that waits in vain ends without a last word, as the real one does. Raises TaskDied."""
        lock, file = self._locks[f"{node}/var/run/vzdump.lock"], "/var/run/vzdump.lock"
        if lock.locked():
            if not wait_s:
                task.say(f"ERROR: can't acquire lock '{file}' (wait = 0)")
                raise TaskDied
            task.say("INFO: trying to get global lock - waiting...")
            try:
                async with asyncio.timeout(wait_s):
                    await lock.acquire()
            except TimeoutError:
                task.say(f"ERROR: can't acquire lock '{file}' - got timeout")
                raise TaskDied from None
            task.say("INFO: got global lock")
        else:
            await lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # ── storages ────────────────────────────────────────────────────────────────────────────────────
    def storages_on(self, node: str) -> list[StorageConfig]:
        return [s for s in self.config.storages if not s.nodes or node in s.nodes]

    def storage(self, name: str, node: str | None = None) -> StorageConfig:
        """Raises PveError 500."""
        found = next((s for s in self.config.storages if s.name == name), None)
        if found is None:
            raise PveError(500, f"storage '{name}' does not exist")
        if node is not None and found.nodes and node not in found.nodes:
            raise PveError(500, f"storage '{name}' is not available on node '{node}'")
        return found

    def place(self, storage: str, node: str) -> str:
        """Where a storage's volumes are: on its node, or (empty) on none in particular."""
        return "" if self.storage(storage, node).shared else node

    def archive(self, node: str, volid: str) -> Archive:
        """Raises PveError 500 where there is no such backup."""
        name = volid.partition(":")[0]
        found = self.archives.find(self.place(name, node), volid)
        if found is None:
            raise PveError(500, f"volume '{volid}' does not exist")
        return found

    def check_bridge(self, identity: Any, net: str) -> None:
        """Raises PveError for a bridge that does not exist (500) or may not be used (403)."""
        bridge = guest.properties(net).get("bridge")
        if bridge is None:
            return
        identity.require(f"/sdn/zones/localnetwork/{bridge}", "SDN.Use")
        if bridge not in self.config.bridges:
            raise PveError(500, f"bridge '{bridge}' does not exist")
