"""The lab's Proxmox: an HTTPS face with the API's own errors, locks, tasks, rights and reason phrases over records of containers.

::

    face ── who, what, may they, where, is it well formed ──▶ routing ──▶ lxc, clone, config, power, snapshots, api_*, task_api
                                                                             │ Cluster: world, locks, tasks, rights
                                                                             ▼
                                                                       World.changed → agents, bridge, …

The address is one that moves to a living node, as a floating address would: it answers while any node is online. A cluster with
an even number of nodes is taken to have a QDevice, so that the loss of one node of two leaves it quorate.
Not simulated: HA, migration, virtual machines, pending changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from flows.lab.config import LabConfig, split_bind
from flows.lab.faults import Faults
from flows.lab.part import PartError
from flows.lab.proxmox import guest, tls
from flows.lab.proxmox.cluster import Cluster
from flows.lab.proxmox.face import Face
from flows.lab.proxmox.rights import Identity
from flows.lab.proxmox.tasks import Task
from flows.lab.serving import Site
from flows.lab.substance import SubstanceError
from flows.lab.world import LabContainer, World, describe

#: Who acts when somebody works behind the controller's back.
PERSON = Identity("root@pam", root=True)


class Proxmox:
    """The running part. ``manipulate`` is a person at the node: start, stop, destroy, lock, unlock, node down and up; and a container that
    dies by itself, of which no task tells."""

    name = "proxmox"

    def __init__(self, cluster: Cluster, site: Site, certificate: tls.Tls) -> None:
        self.cluster, self._site, self._tls = cluster, site, certificate

    @property
    def endpoints(self) -> Mapping[str, str]:
        return {
            "url": self._site.url,
            "address": f"{self._site.host}:{self._site.port}",
            "ca_file": str(self._tls.ca_file),
            "fingerprint": self._tls.fingerprint,
        }

    async def stop(self) -> None:
        await self._site.close()
        await self.cluster.tasks.stop()

    async def restart(self) -> None:
        """As ``systemctl restart pveproxy``: connections break, tasks and locks stay."""
        await self._site.close()
        await self._site.open()

    def inspect(self) -> dict[str, Any]:
        return {
            "nodes": {n.name: {"online": n.online} for n in self.cluster.world.nodes.values()},
            "quorate": self.cluster.quorate(),
            "tasks": [t.entry() for t in self.cluster.tasks.newest_first()[:200]],
            "calls": list(self.cluster.calls)[-200:],
            "writes": list(self.cluster.writes),
        }

    async def manipulate(self, op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if op in ("down", "up"):
            return await self._node(op, str(arguments["node"]))
        container = self.cluster.world.containers.get(int(arguments["vmid"]))
        if container is None:
            raise PartError(f"there is no container {arguments['vmid']}")
        if op == "lock":
            lock = str(arguments.get("lock", "backup"))
            if lock not in guest.LOCKS:
                raise PartError(f"lock: {lock!r} is none of {', '.join(guest.LOCKS)}")
            container.lock = lock
            await self.cluster.world.changed(container.vmid)
        elif op == "unlock":
            container.lock = None
            await self.cluster.world.changed(container.vmid)
        elif op in ("start", "stop", "destroy"):
            await self._person(op, container)
        elif op == "die":
            await self.cluster.substance.stop(container)
            container.stop()
            await self.cluster.world.changed(container.vmid)
        else:
            raise PartError(f"op: {op!r} is none of start, stop, die, destroy, lock, unlock, down, up")
        return describe(container)

    async def _person(self, op: str, container: LabContainer) -> None:
        """A finished task of root@pam, and its effect, whatever the lock."""

        substance = self.cluster.substance

        async def body(task: Task) -> None:
            async with self.cluster.config_lock(container.vmid):
                await self.cluster.refresh_held(container)
                if op == "start":
                    if container.status != "running":
                        await substance.start(container)
                    container.start()
                else:
                    await substance.stop(container)
                    container.stop()
                if op == "destroy":
                    await substance.destroy(container)
                    self.cluster.world.containers.pop(container.vmid, None)
                await self.cluster.world.changed(container.vmid)

        task = self.cluster.tasks.spawn(container.node, f"vz{op}", str(container.vmid), PERSON, body)
        if task.job is not None:
            await task.job
        if task.status != "OK":
            raise PartError(f"{op}: {task.status}")

    async def _node(self, op: str, name: str) -> dict[str, Any]:
        """A node that goes down takes its containers and tasks with it; at its return those with ``onboot`` start."""
        node = self.cluster.world.nodes.get(name)
        if node is None:
            raise PartError(f"there is no node {name!r}, only {', '.join(self.cluster.world.nodes)}")
        changing, node.online = node.online != (op == "up"), op == "up"
        if changing and op == "down":
            for task in self.cluster.tasks.running():
                if task.node == name and task.job is not None:
                    task.dies = True
                    task.job.cancel()
            await asyncio.gather(*(t.job for t in self.cluster.tasks.running() if t.node == name and t.job is not None), return_exceptions=True)
        for container in list(self.cluster.on(name)) if changing else []:
            if op == "down":
                await self.cluster.substance.stop(container)
                container.stop()
            elif container.config.get("onboot") and not container.lock and not container.template:
                try:
                    await self.cluster.substance.start(container)
                except SubstanceError as error:
                    raise PartError(f"{container.vmid}: {error}") from error
                container.start()
            await self.cluster.world.changed(container.vmid)
        return {"node": name, "online": node.online}


async def start(config: LabConfig, world: World, faults: Faults) -> Proxmox:
    """Listens when it returns. Raises OSError where the address is taken."""
    dumps = config.directory.resolve() / "lxc" / "dump" if config.fleet == "lxc" else None  # removed with all else of the containers
    cluster = Cluster(config.proxmox, world, faults, dumps)
    await cluster.open()
    host, port = split_bind(config.proxmox.bind)
    names = ["localhost", *(n.name for n in config.proxmox.nodes)]
    certificate = tls.make(config.proxmox.ca_dir, [host, "127.0.0.1", *(n.address for n in config.proxmox.nodes)], names)
    cluster.fingerprint = certificate.fingerprint
    site = Site((host, port), Face(cluster).app, certificate.context)
    await site.open()
    return Proxmox(cluster, site, certificate)
