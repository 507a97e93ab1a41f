"""What one controlled creation left in the database (M5). Called by :mod:`flows.act.trial`; reads alone."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from flows.domain.operation import Direction, OperationKind, StepName
from flows.domain.server import Server, ServerState
from flows.state import outbox, servers
from flows.state import tables as t
from flows.state.database import Tx


@dataclass(frozen=True, slots=True)
class Rows:
    """Counts of rows; ``attempts`` are the numbers of every attempt of the operation."""

    records: int
    operations: int
    claimed: int
    attempts: tuple[int, ...]
    deployments: int
    alerts: int
    delivered: int


async def made(tx: Tx, server: Server, operation_id: str) -> Rows:
    s, o, a, j, m = t.servers.c, t.operations.c, t.attempts.c, t.journal.c, t.outbox.c
    key = f"provisioned/{operation_id}"
    attempts = [row.attempt for row in await tx.execute(select(a.attempt).where(a.operation_id == operation_id).order_by(a.attempt))]
    runs = select(func.coalesce(func.sum(j.runs), 0)).where(
        j.operation_id == operation_id, j.step == StepName.DEPLOY_AGENT.value, j.direction == Direction.DO.value
    )
    return Rows(
        records=await _count(tx, select(func.count()).where(s.name == server.name)),
        operations=await _count(tx, select(func.count()).where(o.server_id == server.id)),
        claimed=await _count(tx, select(func.count()).where(a.operation_id == operation_id, a.claimed_at.is_not(None))),
        attempts=tuple(attempts),
        deployments=await _count(tx, runs),
        alerts=await _count(tx, select(func.count()).where(m.key == key)),
        delivered=await _count(tx, select(func.count()).where(m.key == key, m.state.in_((outbox.SENT, outbox.FOLDED)))),
    )


async def nonce_of(tx: Tx, server_id: str) -> str:
    """The nonce of the order that made the server; empty: it was made without one."""
    o = t.operations.c
    row = (await tx.execute(select(o.nonce).where(o.server_id == server_id, o.kind == OperationKind.PROVISION.value))).first()
    return (row.nonce or "") if row is not None else ""


async def left(tx: Tx, server: Server) -> list[tuple[str, str, str]]:
    """What a deleted server still holds: (row, what it is, command)."""
    found: list[tuple[str, str, str]] = []
    known = await servers.get(tx, server.id)
    if known is None or known.state is not ServerState.DELETED:
        found.append((f"servers:{server.id}", f"{server.name} is {known.state if known else 'without a row'}", f"zlh delete {server.id} --yes"))
    v, a, held, o, k, e = t.vmids.c, t.addresses.c, t.leases.c, t.operations.c, t.host_keys.c, t.episodes.c
    checks = (
        ("vmids", str(server.vmid), (v.vmid == server.vmid, v.state != "quarantined"), "is not in quarantine"),
        ("addresses", server.address, (a.address == server.address, a.state != "quarantined"), "is not in quarantine"),
        ("leases", server.id, (held.subject == server.id, held.holder.is_not(None)), "is still held"),
        ("operations", server.id, (o.live_server == server.id,), "still lives"),
        ("host_keys", server.id, (k.server_id == server.id,), "are still trusted"),
        ("episodes", server.id, (e.server_id == server.id, e.open_key.is_not(None)), "are still open"),
    )
    for table, key, where, what in checks:
        if await _count(tx, select(func.count()).where(*where)):
            found.append((f"{table}:{key}", f"{table} {key} of {server.name} {what}", "zlh validate database"))
    return found


async def _count(tx: Tx, query: object) -> int:
    return int((await tx.execute(query)).scalar_one())
