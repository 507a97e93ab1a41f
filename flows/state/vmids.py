"""VMIDs: who has which, and which may not be handed out. Called by the front door and by steps.

``reserved`` belongs to a server; ``quarantined`` was released and waits, because a late call at Proxmox could still meet its number;
``burnt`` was found in somebody else's hands and waits for a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import delete, select, update

from flows.errors import Conflict, Temporary
from flows.state import audit
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.gaps import lowest_free
from flows.state.unique import insert_unique

_TRIES = 100


class Reservation(StrEnum):
    RESERVED = "reserved"
    QUARANTINED = "quarantined"
    BURNT = "burnt"


@dataclass(frozen=True, slots=True)
class VmidRow:
    """``server_id`` is the present or last owner; times in ms, ``until`` for quarantine alone."""

    vmid: int
    state: Reservation
    server_id: str | None
    since: int
    until: int | None
    reason: str


async def reserve(tx: Tx, server_id: str, first: int, last: int) -> int:
    """The lowest free VMID of the range, now this server's. Quarantined ones whose time is over count as free only once the others are
    used up, or after :func:`purge`. Raises Conflict (``no_vmid``)."""
    purged = False
    for _ in range(_TRIES):
        vmid = await lowest_free(tx, t.vmids.c.vmid, first, last)
        if vmid is None:
            if purged:
                raise Conflict("no free VMID", why=f"{first} to {last} are all taken", remedy="widen ZLH_VMID__FIRST/LAST", kind="no_vmid")
            await purge(tx)
            purged = True
            continue
        row = {"vmid": vmid, "state": Reservation.RESERVED.value, "server_id": server_id, "since": tx.now, "until": None, "reason": ""}
        if await insert_unique(tx, t.vmids, row):
            return vmid
    raise Temporary("VMID", why="others are faster every time", remedy="try again")


async def quarantine(tx: Tx, vmid: int, until: int, *, server_id: str | None = None) -> bool:
    """Released, to be handed out again after ``until`` (ms). Only once its container is proven absent. Twice is once, the later end holds;
    a burnt one stays burnt. With ``server_id`` only while it is that server's: a late second release must not take it from the next
    owner. False: nothing was changed."""
    v = t.vmids.c
    guard = [v.vmid == vmid, v.state == Reservation.RESERVED.value]
    if server_id is not None:
        guard.append(v.server_id == server_id)
    change = {"state": Reservation.QUARANTINED.value, "since": tx.now, "until": until}
    if (await tx.execute(update(t.vmids).where(*guard).values(**change))).rowcount == 1:
        return True
    later = update(t.vmids).where(v.vmid == vmid, v.state == Reservation.QUARANTINED.value, v.until < until).values(until=until)
    if (await tx.execute(later)).rowcount == 1:
        return True
    return server_id is None and await insert_unique(tx, t.vmids, {"vmid": vmid, "server_id": None, "reason": "", **change})


async def keep_away(tx: Tx, vmid: int, until: int) -> None:
    """Nobody gets this number before ``until`` (ms): for a container without a record that is about to be destroyed. Raises Conflict where a
    server has it."""
    v = t.vmids.c
    row = {"vmid": vmid, "state": Reservation.QUARANTINED.value, "server_id": None, "since": tx.now, "until": until, "reason": "destroyed, no record"}
    if await insert_unique(tx, t.vmids, row):
        return
    later = update(t.vmids).where(v.vmid == vmid, v.state == Reservation.QUARANTINED.value, v.until < until).values(until=until)
    await tx.execute(later)
    state = (await tx.execute(select(v.state).where(v.vmid == vmid))).scalar_one()
    if state == Reservation.RESERVED.value:
        raise Conflict(f"VMID {vmid}", why="it is reserved for a server", kind="vmid_reserved")


async def burn(tx: Tx, vmid: int, reason: str, *, actor: str = "automation", server_id: str | None = None) -> None:
    """Never handed out until a person looks (``zlh vmids free``), whatever it was before. Audited."""
    await audit.append(tx, actor, "vmid.burn", f"vmid:{vmid}", server_id=server_id, detail={"reason": reason[:255]})
    change = {"state": Reservation.BURNT.value, "since": tx.now, "until": None, "reason": reason[:255]}
    for _ in range(2):
        if (await tx.execute(update(t.vmids).where(t.vmids.c.vmid == vmid).values(**change))).rowcount == 1:
            return
        if await insert_unique(tx, t.vmids, {"vmid": vmid, "server_id": None, **change}):
            return


async def unburn(tx: Tx, vmid: int) -> bool:
    """A person looked: it is free again. False: it is not burnt."""
    done = await tx.execute(delete(t.vmids).where(t.vmids.c.vmid == vmid, t.vmids.c.state == Reservation.BURNT.value))
    return bool(done.rowcount == 1)


async def purge(tx: Tx) -> int:
    """Frees what has been in quarantine long enough; returns how many."""
    v = t.vmids.c
    done = await tx.execute(delete(t.vmids).where(v.state == Reservation.QUARANTINED.value, v.until <= tx.now))
    return int(done.rowcount)


async def list_(tx: Tx, *, state: Reservation | None = None) -> list[VmidRow]:
    """By number."""
    query = select(t.vmids).order_by(t.vmids.c.vmid)
    if state is not None:
        query = query.where(t.vmids.c.state == state.value)
    return [VmidRow(r.vmid, Reservation(r.state), r.server_id, r.since, r.until, r.reason) for r in await tx.execute(query)]
