"""Static addresses of containers, from one pool. Called by the front door and by the steps that release a server.

Control traffic and inventory use the reserved address, never one that a container reports.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sqlalchemy import delete, select, update

from flows.errors import Conflict, Temporary
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.gaps import lowest_free
from flows.state.unique import insert_unique
from flows.state.vmids import Reservation

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_TRIES = 100
#: Addresses are searched by number. IPv6 does not fit a BIGINT; its low 62 bits tell the hosts of any real network apart.
_MASK = (1 << 62) - 1
#: How many addresses of a pool stay free at its beginning when ``first`` is not given.
_SPARED = 11


@dataclass(frozen=True, slots=True)
class AddressRow:
    """``server_id`` is the present or last owner; times in ms."""

    address: str
    state: Reservation
    server_id: str | None
    since: int
    until: int | None


async def reserve(tx: Tx, server_id: str, pool: str, first: str, gateway: str) -> str:
    """The lowest free address of ``pool`` (CIDR) from ``first`` on (empty: its 11th), now this server's. Network, broadcast and gateway
    address are never given. Raises Conflict (``no_address``)."""
    network = ipaddress.ip_network(pool)
    start = ipaddress.ip_address(first) if first else first_of(network)
    lowest = max(int(start), int(network.network_address) + 1)
    highest = int(network.broadcast_address) - 1
    base = lowest - (lowest & _MASK)
    highest = min(highest, base + _MASK)
    never = {int(ipaddress.ip_address(gateway)) & _MASK} if gateway else set()
    purged = False
    for _ in range(_TRIES):
        number = None if lowest > highest else await lowest_free(tx, t.addresses.c.number, lowest - base, highest - base, never=never)
        if number is None:
            if purged:
                raise Conflict("no free address", why=f"{pool} is used up", remedy="widen ZLH_NETWORK__POOL", kind="no_address")
            await purge(tx)
            purged = True
            continue
        address = str(type(network.network_address)(base + number))
        row = {"address": address, "number": number, "state": Reservation.RESERVED.value, "server_id": server_id, "since": tx.now, "until": None}
        if await insert_unique(tx, t.addresses, row):
            return address
    raise Temporary("address", why="others are faster every time", remedy="try again")


def first_of(network: Network) -> Address:
    """Where handing out begins by default: the 11th address; in a tiny network earlier, but never at its own address."""
    return network.network_address + min(_SPARED, max(1, network.num_addresses // 4))


async def quarantine(tx: Tx, address: str, until: int, *, server_id: str | None = None) -> bool:
    """Released, to be handed out again after ``until`` (ms). Twice is once, the later end holds. With ``server_id`` only while it is that
    server's. False: nothing was changed."""
    a = t.addresses.c
    guard = [a.address == address, a.state == Reservation.RESERVED.value]
    if server_id is not None:
        guard.append(a.server_id == server_id)
    change = {"state": Reservation.QUARANTINED.value, "since": tx.now, "until": until}
    if (await tx.execute(update(t.addresses).where(*guard).values(**change))).rowcount == 1:
        return True
    later = update(t.addresses).where(a.address == address, a.state == Reservation.QUARANTINED.value, a.until < until).values(until=until)
    return bool((await tx.execute(later)).rowcount == 1)


async def purge(tx: Tx) -> int:
    """Frees what has been in quarantine long enough; returns how many."""
    a = t.addresses.c
    done = await tx.execute(delete(t.addresses).where(a.state == Reservation.QUARANTINED.value, a.until <= tx.now))
    return int(done.rowcount)


async def list_(tx: Tx) -> list[AddressRow]:
    """By number."""
    rows = await tx.execute(select(t.addresses).order_by(t.addresses.c.number))
    return [AddressRow(r.address, Reservation(r.state), r.server_id, r.since, r.until) for r in rows]
