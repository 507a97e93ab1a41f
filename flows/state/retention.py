"""What is thrown away, and when: sweeps and delivered messages after some days. Quarantines that are over end too. Operations,
repairs, episodes and the audit log stay."""

from __future__ import annotations

from flows.state import addresses, outbox, sweeps, vmids
from flows.state.database import Database

DAY_MS = 86_400_000


async def prune(database: Database, keep_days: int = 14) -> None:
    """Called daily by the digest."""
    kept_ms = keep_days * DAY_MS
    async with database.write() as tx:
        await sweeps.prune(tx, tx.now - kept_ms)
        await outbox.prune(tx, tx.now - kept_ms)
        await vmids.purge(tx)
        await addresses.purge(tx)
