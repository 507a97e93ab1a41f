"""One query, answered at once: what the command line's listings read with. On SQLite by the standard library's driver, since importing
SQLAlchemy takes longer than a listing may; on a server through the same engine as everything else.

Queries are plain SQL that all three databases understand; names that are keywords stand in double quotes, parameters are ``:name``.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from flows.errors import AutomationError, BadInput, Busy, Unreachable
from flows.state.url import checked

Rows = list[dict[str, Any]]
_NOW = "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
_REMEDY = "check ZLH_DATABASE__URL; zlh migrate makes the tables"


@dataclass(frozen=True, slots=True)
class Query:
    """``json`` and ``booleans`` name the columns that some databases give back as text or numbers."""

    sql: str
    parameters: Mapping[str, Any]
    json: Collection[str] = ()
    booleans: Collection[str] = ()


def read(url: str, make: Callable[[int], Query], *, busy_timeout_s: float = 5.0) -> tuple[Rows, int]:
    """The rows, and the database's time (ms), which the query is made with. Raises Unreachable, Busy, MisconfiguredSetting, or BadInput for a
    value that no database can hold."""
    checked(url)
    if url.startswith("sqlite"):
        return _sqlite(url, make, busy_timeout_s)
    import asyncio

    return asyncio.run(_server(url, make, busy_timeout_s))


def _sqlite(url: str, make: Callable[[int], Query], busy_timeout_s: float) -> tuple[Rows, int]:
    path = url.partition(":///")[2].partition("?")[0]
    try:
        connection = sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=busy_timeout_s)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            now = int(connection.execute(_NOW).fetchone()[0])
            query = make(now)
            rows = connection.execute(query.sql, dict(query.parameters)).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _translated(error, path) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise BadInput("argument", dict(query.parameters), why=str(error), remedy="give another value") from error
    return _plain([dict(row) for row in rows], query), now


def _translated(error: sqlite3.Error, path: str) -> AutomationError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Busy("database", why=str(error), remedy="try again")
    return Unreachable(f"database {path}", why=str(error), remedy=_REMEDY)


async def _server(url: str, make: Callable[[int], Query], busy_timeout_s: float) -> tuple[Rows, int]:
    from sqlalchemy import text

    from flows.state.database import Database

    database = Database(url, busy_timeout_s=busy_timeout_s)
    try:
        async with database.read() as tx:
            query = make(tx.now)
            sql = query.sql.replace('"', "`") if tx.dialect == "mysql" else query.sql
            rows = [dict(row._mapping) for row in await tx.execute(text(sql), dict(query.parameters))]
            return _plain(rows, query), tx.now
    finally:
        await database.close()


def _plain(rows: Sequence[dict[str, Any]], query: Query) -> Rows:
    for row in rows:
        for name in query.json:
            if isinstance(row.get(name), str):
                row[name] = json.loads(row[name])
        for name in query.booleans:
            if row.get(name) is not None:
                row[name] = bool(row[name])
    return list(rows)
