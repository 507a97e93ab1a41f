"""Insert-or-update in one statement, in each database's own dialect. Used by the stores that keep one row per thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import mysql, postgresql, sqlite

from flows.state.database import Tx


async def upsert(tx: Tx, table: Table, rows: Sequence[Mapping[str, Any]], *, key: str, update: Sequence[str]) -> None:
    """Writes all ``rows`` in one (many-valued) statement. On an existing ``key`` the columns ``update`` take the new values;
    none to update: the existing row stays as it is."""
    if not rows:
        return
    await tx.execute(_statement(tx.dialect, table, key, tuple(update)), [dict(row) for row in rows])


@cache
def _statement(dialect: str, table: Table, key: str, update: tuple[str, ...]) -> Any:
    """Built once: what is written are parameters."""
    insert: Any
    if dialect == "mysql":
        insert = mysql.insert(table)
        # The driver folds the rows into one multi-row INSERT. Setting the key to itself is MariaDB's "do nothing".
        insert = insert.on_duplicate_key_update({c: insert.inserted[c] for c in update} if update else {key: table.c[key]})
    else:
        insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
        if update:
            insert = insert.on_conflict_do_update(index_elements=[key], set_={c: insert.excluded[c] for c in update})
        else:
            insert = insert.on_conflict_do_nothing(index_elements=[key])
    return insert
