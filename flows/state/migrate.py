"""Brings a database to the schema that this code expects. Called by ``zlh up``, the deploy playbook and tests.

Safe to run by several processes at once: they queue behind a lock of the database. SQLite and PostgreSQL change everything
or nothing; MariaDB commits each DDL statement, so there an interrupted upgrade is continued by running it again.
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
from sqlalchemy.ext.asyncio import AsyncConnection

from flows.errors import Busy
from flows.state.database import Database

T = TypeVar("T")
_LOCK = "zlh-migrate"
_LOCK_NUMBER = 0x7A6C68
_WAIT_S = 60


async def upgrade(url: str | URL) -> None:
    """Upgrades to the newest revision; nothing to do is fine. Raises Unreachable, or Busy when another upgrade takes over a minute."""
    await asyncio.to_thread(upgrade_sync, url)


def upgrade_sync(url: str | URL) -> None:
    """:func:`upgrade` where no event loop runs."""
    _make_parent(url)
    _with_connection(url, lambda conn: command.upgrade(_config(conn), "head"))


async def downgrade(url: str | URL, revision: str = "base") -> None:
    """Back to a revision. Loses what newer tables hold: for tests and for a person who knows."""
    await asyncio.to_thread(_with_connection, url, lambda conn: command.downgrade(_config(conn), revision))


async def current(url: str | URL) -> str | None:
    """The database's revision, None for an empty one. Raises Unreachable."""
    return await asyncio.to_thread(_with_connection, url, lambda conn: MigrationContext.configure(conn).get_current_revision())


def head() -> str:
    """The revision that this code expects."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


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
    if conn.dialect.name == "postgresql":
        await conn.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _LOCK_NUMBER})
    elif conn.dialect.name == "mysql":
        got = (await conn.execute(text("SELECT GET_LOCK(CONCAT(:name, DATABASE()), :wait)"), {"name": _LOCK, "wait": _WAIT_S})).scalar_one()
        if got != 1:
            raise Busy("database schema", why="another upgrade is under way", remedy="wait for it, or look for the process that runs it")


async def _unlock(conn: AsyncConnection) -> None:
    if conn.dialect.name == "mysql":
        await conn.execute(text("SELECT RELEASE_LOCK(CONCAT(:name, DATABASE()))"), {"name": _LOCK})
