"""Brings a database to the schema that this code expects. Called by ``zlh up``, the deploy playbook and tests.

Safe to run by several processes at once: they queue behind a lock of the database. SQLite and PostgreSQL change everything
or nothing; MariaDB commits each DDL statement, so there an interrupted upgrade is continued by running it again (:mod:`flows.state.resumable`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from flows.errors import Busy, Conflict
from flows.state import resumable
from flows.state.database import Database, Tx
from flows.state.failures import translated

T = TypeVar("T")
_LOCK = "zlh-migrate"
_LOCK_NUMBER = 0x7A6C68
_WAIT_S = 60


async def upgrade(url: str | URL, revision: str = "head") -> None:
    """Upgrades to the newest revision, or one on the way; nothing to do is fine. Raises Unreachable, Busy when another upgrade takes over a
    minute, Conflict (``schema_newer``) for the schema of a newer program, which is left as it is."""
    await asyncio.to_thread(upgrade_sync, url, revision)


def upgrade_sync(url: str | URL, revision: str = "head") -> None:
    """:func:`upgrade` where no event loop runs."""

    def work(conn: Connection) -> None:
        _refuse_newer(_revision(conn))
        command.upgrade(_config(conn), revision)

    _make_parent(url)
    _with_connection(url, work)


async def check(url: str | URL) -> None:
    """Whether this program may work with the database. Raises Unreachable, Conflict (``schema_newer``, ``schema_older``) with what to do."""
    at = await current(url)
    _refuse_newer(at)
    if at != head():
        why = f"it is at revision {at}, this program needs {head()}" if at else "it has no tables"
        raise Conflict("database schema", why=why, remedy="zlh migrate", kind="schema_older")


async def downgrade(url: str | URL, revision: str = "base") -> None:
    """Back to a revision. Loses what newer tables hold: for tests and for a person who knows."""
    await asyncio.to_thread(_with_connection, url, lambda conn: command.downgrade(_config(conn), revision))


async def current(url: str | URL) -> str | None:
    """The database's revision, None for an empty one. Raises Unreachable."""
    return await asyncio.to_thread(_with_connection, url, _revision)


async def revision_of(tx: Tx) -> str | None:
    """The database's revision as a reader sees it: without :func:`current`'s lock, which would wait for an upgrade under way."""
    revision: str | None = await tx.whole(tx.conn.run_sync(_revision))
    return revision


def head() -> str:
    """The revision that this code expects."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def revisions() -> list[str]:
    """Every revision, in order."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]


def _revision(conn: Connection) -> str | None:
    return MigrationContext.configure(conn).get_current_revision()


def _refuse_newer(at: str | None) -> None:
    """A revision that this program does not know was made by a newer one."""
    if at is not None and at not in revisions():
        why = f"it is at revision {at}, newer than this program's {head()}"
        raise Conflict("database schema", why=why, remedy="run the newer program, or restore the backup made before its upgrade", kind="schema_newer")


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _make_parent(url: str | URL) -> None:
    database = Database(url)
    if database.sqlite and database.url.database and database.url.database != ":memory:":
        Path(database.url.database).parent.mkdir(parents=True, exist_ok=True)


def _with_connection(url: str | URL, work: Callable[[Connection], T]) -> T:
    logging.getLogger("asyncmy").setLevel(logging.ERROR)  # MariaDB notes of each primary key that it has no use for its name

    async def run() -> T:
        database = Database(url, busy_timeout_s=_WAIT_S, answer_s=None)
        resumable.prepare(database.engine.sync_engine)
        try:
            async with database.write() as tx:  # on SQLite one at a time by itself
                await _lock(tx.conn)
                try:
                    return await tx.conn.run_sync(work)
                finally:
                    await _unlock(tx.conn)
        finally:
            await database.close()

    return asyncio.run(run())


async def _lock(conn: AsyncConnection) -> None:
    """Waits for whoever upgrades. On SQLite the transaction has begun, and nobody else's can."""
    got = 1
    if conn.dialect.name == "postgresql":
        try:
            await conn.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _LOCK_NUMBER})
        except DBAPIError as error:
            if not isinstance(translated(error), Busy):
                raise
            got = 0
    elif conn.dialect.name == "mysql":
        query = text("SELECT GET_LOCK(CONCAT(:name, DATABASE()), :wait)")
        got = (await conn.execute(query, {"name": _LOCK, "wait": _WAIT_S})).scalar_one()
    if got != 1:
        raise Busy("database schema", why="another upgrade is under way", remedy="wait for it, or look for the process that runs it")


async def _unlock(conn: AsyncConnection) -> None:
    if conn.dialect.name == "mysql":
        await conn.execute(text("SELECT RELEASE_LOCK(CONCAT(:name, DATABASE()))"), {"name": _LOCK})
