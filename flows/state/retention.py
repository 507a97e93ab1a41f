"""What is thrown away, and when: sweeps and delivered messages after two weeks. Quarantines that are over end too. Operations,
repairs, episodes and the audit log stay."""

from __future__ import annotations

from flows.state import addresses, outbox, sweeps, vmids
from flows.state.database import Database

KEPT_MS = 14 * 86_400_000


async def prune(database: Database) -> None:
    """Called daily by the digest."""
    async with database.write() as tx:
        await sweeps.prune(tx, tx.now - KEPT_MS)
        await outbox.prune(tx, tx.now - KEPT_MS)
        await vmids.purge(tx)
        await addresses.purge(tx)
