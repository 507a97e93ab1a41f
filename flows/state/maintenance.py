"""Servers that people take: for maintenance, and for work outside the engine. Called by ``zlh maintenance on`` and ``zlh lease hold``.

Refused while an operation lives: one that waits for its turn holds no lease yet, and would be kept from its server for hours.
"""

from __future__ import annotations

from sqlalchemy import select

from flows.domain.lease import Lease, LeaseKind
from flows.errors import Busy
from flows.state import audit, leases, operations
from flows.state import tables as t
from flows.state.database import Tx


async def take(tx: Tx, server_id: str, who: str, ttl_ms: int, reason: str) -> Lease:
    """Maintenance for ``ttl_ms``; one that ``who`` holds is prolonged. Audited. Raises Busy naming the lease or the operation in the way."""
    await _lock(tx, server_id)
    held = await leases.get(tx, server_id)
    if held is not None and held.kind is LeaseKind.MAINTENANCE and held.holder == who and not held.expired(tx.now):
        lease = await leases.renew(tx, server_id, held.token, ttl_ms)
    else:
        await _refuse_live(tx, server_id)
        lease = await leases.take(tx, server_id, LeaseKind.MAINTENANCE, who, ttl_ms, reason=reason)
    detail = {"reason": reason, "until": lease.expires_at}
    await audit.append(tx, who, "maintenance.on", f"server:{server_id}", server_id=server_id, detail=detail)
    return lease


async def hold(tx: Tx, server_id: str, kind: LeaseKind, who: str, ttl_ms: int, reason: str) -> Lease:
    """A lease that its holder renews. ``who``'s own of that kind, expired, is taken up again. Audited. Raises Busy as :func:`take` does."""
    await _lock(tx, server_id)
    await _refuse_live(tx, server_id)
    lease = await leases.take(tx, server_id, kind, who, ttl_ms, reason=reason)
    await audit.append(tx, who, "lease.hold", f"server:{server_id}", server_id=server_id, detail={"kind": kind.value, "reason": reason})
    return lease


async def _lock(tx: Tx, server_id: str) -> None:
    """As every order does first."""
    await tx.execute(select(t.servers.c.id).where(t.servers.c.id == server_id).with_for_update())


async def _refuse_live(tx: Tx, server_id: str) -> None:
    live = await operations.live_of(tx, server_id)
    if live is not None:
        raise Busy(
            f"server {server_id}",
            why=f"{live.kind} {live.id} is {live.state}",
            remedy=f"wait for it: zlh operations follow {live.id}, or zlh maintenance on {server_id} --wait",
        )
