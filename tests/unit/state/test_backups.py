"""Backups: only verified ones count, and the newest of each server is one query away."""

from __future__ import annotations

from typing import Any

import pytest

from flows.domain.snapshot import BackupFact
from flows.errors import NotFound
from flows.state import backups
from flows.state.database import Database


async def test_the_latest_verified_backup_of_each_server(timed: Database, clock: Any, make: Any) -> None:
    async def add(server_id: str, verified: bool) -> str:
        async with timed.write() as tx:
            at = tx.now if verified else None
            backup = await backups.add(
                tx, server_id=server_id, type_="world", reason="daily", size_bytes=1, sha256="0" * 64, location="/b", verified_at=at
            )
        clock.advance(1_000)
        return backup.id

    async with timed.write() as tx:
        one, two, none = [(await make.server(tx)).id for _ in range(3)]
    await add(one, True)
    newest = clock.now
    await add(one, True)
    await add(one, False)
    late = await add(two, False)
    async with timed.write() as tx:
        assert await backups.latest_verified(tx) == {one: BackupFact(one, newest)}
        await backups.verified(tx, late)
        assert await backups.latest_verified(tx) == {one: BackupFact(one, newest), two: BackupFact(two, clock.now)}
        assert [b.server_id for b in await backups.list_(tx)] == [two, one, one, one]
        assert [b.id for b in await backups.list_(tx, server_id=two)] == [late]
        assert await backups.list_(tx, server_id=none) == []
        assert len(await backups.list_(tx, limit=2)) == 2
        with pytest.raises(NotFound):
            await backups.verified(tx, "nothing")
