"""The Proxmox client: :class:`flows.domain.ports.ProxmoxWriter`. Built by ``bootstrap``; observers read with it, ``act`` writes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence

from flows.clients.proxmox import absence, answers, rights
from flows.clients.proxmox.answers import succeeded
from flows.clients.proxmox.errors import ALREADY_RUNNING, NOT_RUNNING
from flows.clients.proxmox.session import MAX_ANSWER_BYTES, Session
from flows.clients.proxmox.tasks import Tasks
from flows.domain.ports import CloneSpec, ContainerSpec
from flows.domain.sources import ContainerConfig, ProxmoxView, TaskStatus
from flows.errors import AmbiguousEffect, BadAnswer, BadInput, Conflict, Unproven
from flows.settings import ProxmoxSettings

_TAG = re.compile(r"[a-z0-9_][a-z0-9_\-+.]*")
#: Task lists are read in pages of this many, and no further than this many pages.
PAGE, PAGES = 500, 20
#: Network properties that we set; others (``hwaddr``, ``firewall``, ``ip6``, …) stay as they are.
_OURS = ("name", "bridge", "ip", "gw", "type")


class ProxmoxClient:
    """Token authentication, TLS verified. Reads are repeated, writes never; each mutating call takes ``timeout_s`` at most."""

    def __init__(self, settings: ProxmoxSettings, *, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._session = Session(settings, max_answer_bytes=max_answer_bytes)
        self._tasks = Tasks(self._session, settings.poll_s)
        self._timeout_s = settings.timeout_s

    async def close(self) -> None:
        await self._session.close()

    # Reading

    async def view(self) -> ProxmoxView:
        """See the protocol. Rights and quorum are asked before and after: a token may lose them in between."""
        what = "the fleet's containers"
        await absence.guard(self._session, what)
        resources, tasks = await asyncio.gather(
            self._session.get(what, "cluster/resources", type="vm"), self._session.get("the cluster's tasks", "cluster/tasks")
        )
        online = await absence.guard(self._session, what)
        containers, twice = answers.containers(resources, what)
        entries = answers.task_entries(tasks, "the cluster's tasks")
        return ProxmoxView(
            containers=containers,
            nodes_online=online,
            tasks=answers.running_tasks(entries),
            duplicate_vmids=twice,
            last_stop_by=answers.last_stops(entries),
        )

    async def config(self, node: str, vmid: int) -> ContainerConfig:
        what = f"configuration of {vmid}"
        return answers.config(await self._session.get(what, f"nodes/{node}/lxc/{vmid}/config"), vmid, what)

    async def status(self, node: str, vmid: int) -> str:
        what = f"status of {vmid}"
        data = answers.row(await self._session.get(what, f"nodes/{node}/lxc/{vmid}/status/current"), what)
        status = data.get("status")
        if status not in ("running", "stopped"):
            raise Unproven(what, why="Proxmox does not know it", remedy="check that pvestatd runs on the node")
        return str(status)

    async def proven_absent(self, vmid: int, *, template_vmid: int | None = None) -> bool:
        return await absence.proven(self._session, vmid, template_vmid)

    async def where(self, vmid: int) -> tuple[str, str] | None:
        what = f"whereabouts of {vmid}"
        await absence.guard(self._session, what)
        found = answers.guests(await self._session.get(what, "cluster/resources", type="vm"), vmid, what)
        await absence.guard(self._session, what)
        if len(found) > 1:
            raise Unproven(what, why="more than one guest has it", remedy="find out by hand which is right")
        return found[0] if found else None

    async def task(self, upid: str) -> TaskStatus:
        status = await self._tasks.status(upid)
        if status.finished and not status.ok:
            return TaskStatus(upid, True, False, status.exitstatus, await self._tasks.tail(upid))
        return status

    async def tasks_of(self, vmid: int) -> Sequence[TaskStatus]:
        online = await absence.guard(self._session, f"running tasks of {vmid}")
        running = await absence.all_running(self._session, online)
        return [TaskStatus(e.upid.text, finished=False, ok=False) for e in running if e.upid.vmid == vmid]

    async def clone_tasks(self, node: str, template_vmid: int, since_s: int) -> Sequence[tuple[str, bool]]:
        """``since_s`` is compared with the *node's* clock: allow for a difference. Raises Unproven where the list has no end."""
        what = f"clones of {template_vmid}"
        found: dict[str, bool] = {}
        for source in ("active", "archive"):  # the archive last: a task that ends between the two is in both
            for page in range(PAGES):
                data = answers.rows(
                    await self._session.get(
                        what,
                        f"nodes/{node}/tasks",
                        source=source,
                        vmid=template_vmid,
                        typefilter="vzclone",
                        since=since_s,
                        start=page * PAGE,
                        limit=PAGE,
                    ),
                    what,
                )
                for entry in answers.task_entries(data, what):
                    u = entry.upid
                    if u.kind == "vzclone" and u.vmid == template_vmid and u.started_s >= since_s and u.user == self._session.token_id:
                        found[u.text] = entry.running
                if len(data) < PAGE:
                    break
            else:
                raise Unproven(what, why=f"more than {PAGE * PAGES} tasks")
        return sorted(found.items())

    async def cloning(self, node: str) -> Sequence[str]:
        running = await absence.running_on(self._session, node)
        return [e.upid.text for e in running if e.upid.kind == "vzclone" and e.upid.user == self._session.token_id]

    async def doctor(self) -> Mapping[str, object]:
        """``version``, ``rights_held``, ``rights_missing``, ``quorate``, ``nodes``, ``clock_difference_s`` (theirs minus ours)."""
        version = answers.row(await self._session.get("its version", "version"), "its version")
        held = rights.parse(await self._session.get("its permissions", "access/permissions"), "its permissions")
        found: dict[str, object] = {
            "version": answers.text(version.get("version"), "its version", "version"),
            "rights_held": {path: sorted(names) for path, names in held.items()},
            "rights_missing": rights.missing(held),
        }
        status = await self._session.get("the cluster's status", "cluster/status")
        online, quorate = answers.nodes(status, "the cluster's status")
        node = next((str(n.get("name")) for n in status if answers.truth(n.get("local"))), next(iter(online)))
        asked = time.time()
        clock = answers.row(await self._session.get("its clock", f"nodes/{node}/time"), "its clock")
        middle = (asked + time.time()) / 2
        found |= {"quorate": quorate, "nodes": online}
        found["clock_difference_s"] = round(answers.number(clock.get("time"), "its clock", "time") - middle, 1)
        return found

    # Writing

    async def clone(self, spec: CloneSpec) -> str:
        what = f"clone of {spec.template_vmid} to {spec.vmid} on {spec.node}"
        data = await self._session.post(
            what,
            f"nodes/{spec.node}/lxc/{spec.template_vmid}/clone",
            newid=spec.vmid,
            full=1,
            hostname=spec.hostname,
            description=spec.description,
            storage=spec.storage,
        )
        return self._upid(data, what)

    async def configure(self, node: str, vmid: int, spec: ContainerSpec) -> str | None:
        """Sets what differs, guarded by the configuration's digest. The UPID is that of growing the disk, None if it need not grow.

        A disk that is larger than ordered (the template's was) is left: Proxmox cannot shrink one.
        """
        what = f"configuration of {vmid}"
        if bad := next((t for t in sorted(spec.tags) if not _TAG.fullmatch(t)), None):
            raise BadInput("tags", bad, why="Proxmox allows a-z, 0-9, _, -, + and . only")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._configure(what, node, vmid, spec)
        except TimeoutError as error:
            raise AmbiguousEffect(what, why=f"no end within {self._timeout_s:.0f} s", remedy="configure again: the values are absolute") from error

    async def _configure(self, what: str, node: str, vmid: int, spec: ContainerSpec) -> str | None:
        before = await self.config(node, vmid)
        network = answers.properties(before.raw.get("net0")) | {
            "name": "eth0",
            "bridge": spec.bridge,
            "ip": spec.address_cidr,
            "gw": spec.gateway,
            "type": "veth",
        }
        if not spec.gateway:
            del network["gw"]
        wanted = {"cores": spec.cores, "memory": spec.memory_mb, "onboot": int(spec.on_boot)}
        changes: dict[str, object] = {k: v for k, v in wanted.items() if str(before.raw.get(k, "")) != str(v)}
        if before.tags != spec.tags:
            changes["tags"] = ";".join(sorted(spec.tags))
        if network != answers.properties(before.raw.get("net0")):
            order = [*(k for k in _OURS if k in network), *sorted(k for k in network if k not in _OURS)]
            changes["net0"] = ",".join(f"{k}={network[k]}" for k in order)
        if changes:
            if before.digest:
                changes["digest"] = before.digest
            await self._session.put(what, f"nodes/{node}/lxc/{vmid}/config", **changes)
        if answers.size_gb(answers.properties(before.raw.get("rootfs")).get("size")) >= spec.disk_gb:
            return None
        data = await self._session.put(f"disk of {vmid}", f"nodes/{node}/lxc/{vmid}/resize", disk="rootfs", size=f"{spec.disk_gb}G")
        return None if data is None else self._upid(data, f"disk of {vmid}")

    async def start(self, node: str, vmid: int) -> str | None:
        try:
            return await self._power(node, vmid, "start")
        except Conflict as error:
            if ALREADY_RUNNING.search(error.why):
                return None
            raise

    async def stop(self, node: str, vmid: int) -> str | None:
        return await self._end(node, vmid, "stop")

    async def shutdown(self, node: str, vmid: int, timeout_s: int) -> str | None:
        """Asks the container to end and gives it ``timeout_s``; the task fails where it does not."""
        return await self._end(node, vmid, "shutdown", timeout=timeout_s)

    async def _end(self, node: str, vmid: int, action: str, **data: object) -> str | None:
        try:
            return await self._power(node, vmid, action, **data)
        except Conflict as error:
            if NOT_RUNNING.search(error.why):
                return None
            raise

    async def _power(self, node: str, vmid: int, action: str, **data: object) -> str:
        what = f"{action} of {vmid}"
        return self._upid(await self._session.post(what, f"nodes/{node}/lxc/{vmid}/status/{action}", **data), what)

    async def destroy(self, node: str, vmid: int) -> str:
        """With ``purge``: backup jobs, replication and rights that name the VMID go as well, for its next owner's sake."""
        what = f"destruction of {vmid}"
        return self._upid(await self._session.delete(what, f"nodes/{node}/lxc/{vmid}", purge=1), what)

    async def wait(self, upid: str, deadline_s: float) -> TaskStatus:
        return await self._tasks.wait(upid, deadline_s)

    def _upid(self, data: object, what: str) -> str:
        """The effect has begun: an answer without a UPID is a lost one."""
        try:
            return answers.upid(data, f"Proxmox: {what}").text
        except BadAnswer as error:
            raise AmbiguousEffect(error.what, why=error.why, remedy="look at the object before acting again") from error


__all__ = ["ProxmoxClient", "succeeded"]
