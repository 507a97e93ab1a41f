"""Insert a row unless a uniqueness forbids it, without losing the transaction. Used by reservations and claims that race."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Insert, Table, insert
from sqlalchemy.exc import IntegrityError

from flows.state.database import Tx


async def insert_unique(tx: Tx, table: Table, values: Mapping[str, Any]) -> bool:
    """True: written. False: a primary key or unique column is taken; the transaction goes on either way.

    PostgreSQL alone abandons a whole transaction on such an error, so there (and only there) a savepoint stands before the
    insert. Waits while the row that is in the way is not committed yet. A missing foreign key also reads as False: callers
    reserve keys, they do not discover parents.
    """
    try:
        if tx.dialect == "postgresql":
            async with tx.conn.begin_nested():
                await tx.execute(_insert(table), dict(values))
        else:
            await tx.execute(_insert(table), dict(values))
    except IntegrityError:
        return False
    return True


@cache
def _insert(table: Table) -> Insert:
    """Built once per table: what is inserted are parameters."""
    return insert(table)
