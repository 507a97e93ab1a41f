"""M1 at 10,000 servers: seconds, not minutes, on whichever database."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import insert

from flows.decide.validate import database as rules
from flows.domain.records import Limits
from flows.state import records
from flows.state import tables as t
from flows.state.database import Database

FLEET, CHUNK = 10_000, 1_000
#: Seconds; an idle machine needs about a tenth.
LIMIT_S = 20.0


@pytest.mark.soak
async def test_ten_thousand_servers(db: Database, make: Any) -> None:
    async with db.write() as tx:
        one = await make.server(tx)
        operation = await make.operation(tx, one)
        row = (await tx.execute(t.servers.select())).one()._mapping
        order = (await tx.execute(t.operations.select())).one()._mapping
        for start in range(1, FLEET, CHUNK):
            numbers = range(start, min(start + CHUNK, FLEET))
            servers = [
                {**row, "id": f"s{n:07}", "name": f"n{n}", "live_name": f"n{n}", "vmid": 20_000 + n, "address": f"10.{n >> 8}.{n & 255}.1",
                 "state": "active", "activated_at": tx.now} for n in numbers
            ]  # fmt: skip
            await tx.execute(insert(t.servers), servers)
            await tx.execute(
                insert(t.vmids), [{"vmid": s["vmid"], "state": "reserved", "server_id": s["id"], "since": 0, "reason": ""} for s in servers]
            )
            await tx.execute(
                insert(t.addresses),
                [
                    {"address": s["address"], "number": n, "state": "reserved", "server_id": s["id"], "since": 0}
                    for n, s in zip(numbers, servers, strict=True)
                ],
            )
            await tx.execute(
                insert(t.operations),
                [
                    {**order, "id": f"o{n:07}", "server_id": f"s{n:07}", "live_server": None, "state": "succeeded", "finished_at": 1, "nonce": None}
                    for n in numbers
                ],
            )
            await tx.execute(
                insert(t.leases),
                [{"subject": f"s{n:07}", "token": 1, "reason": "", "taken_at": 0, "heartbeat_at": 0, "expires_at": 0} for n in numbers],
            )
        await tx.execute(t.vmids.insert().values(vmid=one.vmid, state="reserved", server_id=one.id, since=0, reason=""))
        await tx.execute(t.addresses.insert().values(address=one.address, number=1 << 40, state="reserved", server_id=one.id, since=0))
    began = time.monotonic()
    async with db.read() as tx:
        known = await records.load(tx, give_up_ms=1, stuck_ms=1)
    read = time.monotonic()
    found = rules.problems(known, Limits())
    took = (read - began, time.monotonic() - read)
    print(f"{db.engine.dialect.name}: read {took[0]:.2f} s, judged {took[1]:.2f} s, {len(found)} findings")
    assert len(known.servers) == FLEET
    assert [o.id for o in known.operations] == [operation.id]
    assert found == ()
    assert sum(took) < LIMIT_S
