"""Maintenance: a person takes a server, so that no repair and no order touches it. Called by ``zlh maintenance on``."""

from __future__ import annotations

from sqlalchemy import select

from flows.domain.lease import Lease, LeaseKind
from flows.errors import Busy
from flows.state import audit, leases, operations
from flows.state import tables as t
from flows.state.database import Tx


async def take(tx: Tx, server_id: str, who: str, ttl_ms: int, reason: str) -> Lease:
    """The server's lease for ``ttl_ms``; one that ``who`` holds is prolonged. Audited.

    Raises Busy naming the lease in the way, or the operation: one that waits for its turn holds no lease yet, and would be kept from its
    server for hours.
    """
    await tx.execute(select(t.servers.c.id).where(t.servers.c.id == server_id).with_for_update())  # as every order does first
    held = await leases.get(tx, server_id)
    if held is not None and held.kind is LeaseKind.MAINTENANCE and held.holder == who and not held.expired(tx.now):
        lease = await leases.renew(tx, server_id, held.token, ttl_ms)
    else:
        live = await operations.live_of(tx, server_id)
        if live is not None:
            raise Busy(
                f"server {server_id}",
                why=f"{live.kind} {live.id} is {live.state}",
                remedy=f"wait for it: zlh maintenance on {server_id} --wait, or follow it: zlh operations follow {live.id}",
            )
        lease = await leases.take(tx, server_id, LeaseKind.MAINTENANCE, who, ttl_ms, reason=reason)
    detail = {"reason": reason, "until": lease.expires_at}
    await audit.append(tx, who, "maintenance.on", f"server:{server_id}", server_id=server_id, detail=detail)
    return lease
