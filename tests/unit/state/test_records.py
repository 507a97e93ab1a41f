"""What ``zlh validate database`` reads: broken rows as they lie there, in set queries, on every database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from sqlalchemy import event, insert, text, update

from flows.decide.validate import database as rules
from flows.domain.lease import LeaseKind
from flows.domain.records import Limits
from flows.domain.server import ServerState
from flows.state import addresses, leases, records, servers, vmids
from flows.state import tables as t
from flows.state.database import Database, Tx

HOUR, DAY = 3_600_000, 86_400_000


async def load(db: Database) -> records.Records:
    async with db.read() as tx:
        return await records.load(tx, give_up_ms=DAY, stuck_ms=900_000)


async def whole(tx: Tx, make: Any, **changes: Any) -> Any:
    """An active server with its reservations."""
    server = await make.server(tx, **changes)
    await vmids.reserve(tx, server.id, server.vmid, server.vmid)
    address = await addresses.reserve(tx, server.id, "10.20.0.0/16", server.address, "10.20.0.1")
    assert address == server.address
    if server.state is ServerState.CREATING:
        await servers.set_state(tx, server.id, ServerState.ACTIVE, "test")
    return await servers.get(tx, server.id)


async def test_a_whole_fleet_has_no_problem(db: Database, make: Any) -> None:
    async with db.write() as tx:
        for _ in range(3):
            await whole(tx, make)
        creating = await make.server(tx)
        await vmids.reserve(tx, creating.id, creating.vmid, creating.vmid)
        await addresses.reserve(tx, creating.id, "10.20.0.0/16", creating.address, "10.20.0.1")
        operation = await make.operation(tx, creating)
        await leases.take(tx, creating.id, LeaseKind.OPERATION, "host:1:0123abcd", 60_000, operation_id=operation.id)
    known = await load(db)
    assert len(known.servers) == 4
    assert len(known.operations) == len(known.leases) == 1
    assert rules.problems(known, Limits()) == ()


async def test_broken_rows_are_read_and_named(db: Database, make: Any) -> None:
    async with db.write() as tx:
        good, odd, claims = await whole(tx, make), await whole(tx, make), await whole(tx, make)
        await tx.execute(update(t.servers).where(t.servers.c.id == odd.id).values(state="petrified"))
        await tx.execute(update(t.servers).where(t.servers.c.id == claims.id).values(live_name=None, name=good.name))
        operation = await make.operation(tx, good)
        await tx.execute(update(t.operations).where(t.operations.c.id == operation.id).values(state="succeeded", finished_at=tx.now))
        await leases.take(tx, good.id, LeaseKind.OPERATION, "host:1:0123abcd", 60_000, operation_id=operation.id)
        await tx.execute(insert(t.leases).values(subject="dns:x", token=1, kind="magic", holder="h", expires_at=tx.now))
        await tx.execute(update(t.vmids).where(t.vmids.c.vmid == good.vmid).values(state="quarantined", until=tx.now + DAY))
        await tx.execute(insert(t.vmids).values(vmid=19_000, state="reserved", server_id="nobody", since=tx.now, reason=""))
        await tx.execute(
            insert(t.outbox).values(
                id="m", key="k", kind="host_down", channel="alerts-critical", ping=True, severity="critical", event={}, state="waiting",
                created_at=tx.now - 2 * DAY, not_before=tx.now,
            )
        )  # fmt: skip
    known = await load(db)
    found = {(p.rule, p.objects) for p in rules.problems(known, Limits())}
    assert {
        ("illegal_state", (f"servers:{odd.id}",)),
        ("illegal_state", ("leases:dns:x",)),
        ("duplicate_name", (f"servers:{good.id}", f"servers:{claims.id}")),
        ("name_claim", (f"servers:{claims.id}",)),
        ("operation_claim", (f"operations:{operation.id}", f"servers:{good.id}")),
        ("lease_without_owner", (f"leases:{good.id}", f"operations:{operation.id}")),
        ("released_in_use", (f"servers:{good.id}", f"vmids:{good.vmid}")),
        ("reservation_without_server", ("vmids:19000", "servers:nobody")),
        ("foreign_key", ("vmids:19000",)),
        ("state_overdue", ("outbox:m",)),
    } <= found


async def test_a_reference_that_the_schema_enforces_is_looked_at_too(db: Database, make: Any) -> None:
    """Written as a restored dump writes it; PostgreSQL lets nobody but its owner do that, so there the row is only read back as whole."""
    async with db.write() as tx:
        server = await whole(tx, make)
    if db.engine.dialect.name == "postgresql":
        assert not (await load(db)).orphans
        return
    if db.sqlite:
        with closing(sqlite3.connect(str(db.url.database))) as conn:  # which checks nothing unless told to
            conn.execute("UPDATE servers SET customer_id = 'nobody' WHERE id = ?", (server.id,))
            conn.commit()
    else:
        async with db.write() as tx:
            await tx.execute(text("SET SESSION foreign_key_checks = 0"))
            await tx.execute(update(t.servers).where(t.servers.c.id == server.id).values(customer_id="nobody"))
            await tx.execute(text("SET SESSION foreign_key_checks = 1"))
    [orphan] = (await load(db)).orphans
    assert (orphan.table, orphan.column, orphan.refers_to, orphan.count, orphan.keys) == ("servers", "customer_id", "customers", 1, (server.id,))


async def test_the_number_of_statements_does_not_grow_with_the_fleet(db: Database, make: Any) -> None:
    counted: list[str] = []
    event.listen(db.engine.sync_engine, "before_cursor_execute", lambda _c, _cu, statement, *_: counted.append(statement))
    async with db.write() as tx:
        await whole(tx, make)
    counted.clear()
    await load(db)
    few = len(counted)
    async with db.write() as tx:
        for _ in range(30):
            await whole(tx, make)
    counted.clear()
    assert len((await load(db)).servers) == 31
    assert len(counted) == few


def test_every_column_of_a_state_is_compared() -> None:
    """A column of few, known values: short text, and called so."""
    named = {
        f"{table.name}.{column.name}"
        for table in t.metadata.sorted_tables
        for column in table.c
        if column.name in ("state", "kind", "billing", "desired", "edge", "ctype", "attempt_state", "direction", "step")
    }
    free = {"observations.state", "outbox.kind", "operations.ctype"}  # the agent's words; an event's; part of a nonce
    assert named - free <= set(records.enums())
