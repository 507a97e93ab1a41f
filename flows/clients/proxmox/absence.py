"""When a container is *proven absent*, the only ground on which a VMID is released. Used by :mod:`client`.

All must deny it: the cluster is quorate and our token sees everything (asked before and after), no task for the VMID runs, no clone of
our template runs (a ``vzclone`` names its source alone), and ``nextid`` says that the VMID is free. Tasks are asked before ``nextid``: a
clone that ends between the two has its configuration there by then.
"""

from __future__ import annotations

import asyncio

from flows.clients.proxmox import answers, rights
from flows.clients.proxmox.errors import VMID_TAKEN
from flows.clients.proxmox.session import Session
from flows.errors import BadAnswer, Conflict, Unproven

_CLONES = frozenset({"vzclone", "qmclone"})
#: Running tasks of one node that are read at most, in pages.
PAGE = 500
PAGES = 20


async def guard(session: Session, what: str) -> dict[str, bool]:
    """Nodes, online or not. Raises Unproven where rights or quorum make the API's answers untrustworthy."""
    permissions, status = await asyncio.gather(
        session.get("its permissions", "access/permissions"), session.get("the cluster's status", "cluster/status")
    )
    rights.require(rights.parse(permissions, what), what, session.token_id)
    online, quorate = answers.nodes(status, what)
    if not quorate:
        raise Unproven(what, why="the cluster is not quorate", remedy="bring enough nodes back; until then Proxmox answers from an old copy")
    return online


async def running_on(session: Session, node: str) -> list[answers.TaskEntry]:
    """Every task that runs on a node. Raises Unproven where the list has no end."""
    what = f"running tasks of {node}"
    found: list[answers.TaskEntry] = []
    for page in range(PAGES):
        data = answers.rows(await session.get(what, f"nodes/{node}/tasks", source="active", start=page * PAGE, limit=PAGE), what)
        found += [entry for entry in answers.task_entries(data, what) if entry.running]
        if len(data) < PAGE:
            return found
    raise Unproven(what, why=f"more than {PAGE * PAGES}")


async def all_running(session: Session, online: dict[str, bool]) -> list[answers.TaskEntry]:
    """Of every node that is online: one outside the quorum can write nothing."""
    lists = await asyncio.gather(*(running_on(session, node) for node, up in online.items() if up))
    return [entry for entries in lists for entry in entries]


async def proven(session: Session, vmid: int, template_vmid: int | None) -> bool:
    """True: proven absent. False: it exists. Raises Unproven where neither can be shown."""
    what = f"absence of {vmid}"
    online = await guard(session, what)
    for entry in await all_running(session, online):
        u = entry.upid
        if u.vmid == vmid:
            raise Unproven(what, why=f"a {u.kind} of it is running")
        if u.kind in _CLONES and (template_vmid is None or u.vmid in (template_vmid, None)):
            raise Unproven(what, why=f"a clone of {u.vmid} is running and may be making it")
    free = await _free(session, vmid, what)
    if free:
        await guard(session, what)
    return free


async def _free(session: Session, vmid: int, what: str) -> bool:
    try:
        answer = await session.get(what, "cluster/nextid", vmid=vmid)
    except Conflict as error:
        if VMID_TAKEN.search(error.why):
            return False
        raise
    if str(answer) != str(vmid):
        raise BadAnswer(what, why="nextid answered for another VMID")
    return True
