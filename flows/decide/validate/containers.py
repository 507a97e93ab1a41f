"""M1 against Proxmox: records without container and the reverse, released VMIDs that still run. Pure.

Proxmox is looked at before the database: what changed in between is told apart by the rows' own times.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from flows.decide.validate.identity import OWNING, problem, row
from flows.domain.operation import LIVE_STATES
from flows.domain.records import Records, ServerRecord
from flows.domain.server import ServerState
from flows.domain.sources import Container, ProxmoxView
from flows.domain.validation import Problem

TAG = "zlh"
_LIVE = frozenset(s.value for s in LIVE_STATES)
_SETTLED = frozenset({ServerState.ACTIVE.value, ServerState.SUSPENDED.value})


def missing(records: Records, view: ProxmoxView, looked_at: int) -> list[ServerRecord]:
    """Servers that should have a container and of which the list shows none: candidates, whose absence is still to be proven."""
    busy = {o.server_id for o in records.operations if o.state in _LIVE}
    return [
        s for s in records.servers if s.state in _SETTLED and s.id not in busy and (s.activated_at or 0) < looked_at and s.vmid not in view.containers
    ]


def problems(records: Records, view: ProxmoxView, looked_at: int, absent: Collection[str], others: Mapping[str, str]) -> Iterator[Problem]:
    """``looked_at``: database time (ms) before Proxmox was asked. ``absent``: ids of servers whose container is proven absent. ``others``: id of
    a server whose VMID a virtual machine has → its node."""
    busy = {o.server_id for o in records.operations if o.state in _LIVE}
    for server in missing(records, view, looked_at):
        if server.id in absent:
            says = f"{server.name} is {server.state} and ct {server.vmid} on {server.node} does not exist"
            remedy = f"zlh restore {server.name}, or give it up: zlh delete {server.name} --yes"
            yield problem("record_without_container", (row(server), ct(server.vmid, server.node)), says, remedy)
        elif server.id in others:
            node = others[server.id]
            says = f"{server.name} is {server.state}, and its VMID is another guest's: {server.vmid} on {node} is a virtual machine"
            remedy = f"on {node}: qm config {server.vmid}; zlh maintenance on {server.name}"
            yield problem("container_of_another", (row(server), f"qemu:{server.vmid}@{node}"), says, remedy)
    by_vmid = {s.vmid: s for s in records.servers if s.state in OWNING}
    just_gone = {s.vmid for s in records.servers if s.deleted_at is not None and s.deleted_at >= looked_at}
    just_gone |= {vmid for vmid, held in records.vmids.items() if held.state == "quarantined" and held.since >= looked_at}
    for vmid, container in sorted(view.containers.items()):
        if container.template:
            continue
        owner = by_vmid.get(vmid)
        if owner is not None:
            if owner.state in _SETTLED and owner.id not in busy:
                yield from _other(owner, container)
        elif vmid not in just_gone:
            yield from _unowned(records, container)
    for vmid in sorted(view.duplicate_vmids):
        if vmid in by_vmid:
            says = f"more than one guest of the cluster has VMID {vmid}, that of {by_vmid[vmid].name}"
            yield problem("duplicate_vmid", (row(by_vmid[vmid]), f"ct:{vmid}"), says, f"pvesh get /cluster/resources --type vm | grep {vmid}")


def ct(vmid: int, node: str) -> str:
    return f"ct:{vmid}@{node}"


def _other(owner: ServerRecord, container: Container) -> Iterator[Problem]:
    """The number is right: is it the right container, and where the record says?"""
    objects = (row(owner), ct(container.vmid, container.node))
    if f"zlh-srv-{owner.id}" not in container.tags:
        whose = sorted(tag for tag in container.tags if tag.startswith("zlh-srv-"))
        says = f"ct {container.vmid} does not carry the tag of {owner.name}" + (f", but {', '.join(whose)}" if whose else "")
        yield problem("container_of_another", objects, says, f"zlh maintenance on {owner.name}; on {container.node}: pct config {container.vmid}")
    if container.node != owner.node:
        says = f"{owner.name} is on {container.node}, its record says {owner.node}"
        yield problem("container_elsewhere", objects, says, f"on {container.node}: pct migrate {container.vmid} {owner.node} --restart")


def _unowned(records: Records, container: Container) -> Iterator[Problem]:
    held = records.vmids.get(container.vmid)
    ours = TAG in container.tags
    object_ = ct(container.vmid, container.node)
    if held is not None and held.state == "quarantined":
        says = f"VMID {container.vmid} was released, and a container {container.name or 'without a name'} still has it ({container.status})"
        remedy = f"on {container.node}: pct config {container.vmid}; if nobody needs it: pct destroy {container.vmid}"
        yield problem("released_in_use", (f"vmids:{container.vmid}", object_), says, remedy)
    elif ours:
        says = f"ct {container.vmid} ({container.name or 'without a name'}, {container.status}) carries our tag and no server has it"
        remedy = f"on {container.node}: pct config {container.vmid}; if nobody needs it: pct destroy {container.vmid}"
        yield problem("container_without_record", (object_,), says, remedy)
