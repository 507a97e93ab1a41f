"""Migrated databases on real servers, as fixtures: ``from tests.support.databases import mariadb, postgresql`` (and what else a module uses).

A server lives as long as the test process; each test module gets databases of its own, emptied before each test.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, exists, insert, literal, select, text, union_all

from flows.state import migrate
from flows.state import tables as t
from flows.state.database import Database
from tests.support import servers

#: For ``@pytest.mark.parametrize("kind", ALL, indirect=True)`` and the like: servers need what a lab host has.
SERVERS = [pytest.param("mariadb", marks=pytest.mark.lab), pytest.param("postgresql", marks=pytest.mark.lab)]
ALL = [pytest.param("sqlite"), *SERVERS]
SEEDED = (t.plan_limits, t.epochs, t.control)
Seeds = dict[str, list[dict[str, Any]]]
_names = itertools.count(1)


def _running(server: servers.Server) -> Iterator[Any]:
    if server.program() is None:
        pytest.fail(f"{server.name} is not installed: playbooks/lab.yml installs it")
    with servers.running(server):
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[servers.MariaDB]:
    yield from _running(servers.MariaDB())


@pytest.fixture(scope="session")
def postgresql() -> Iterator[servers.PostgreSQL]:
    yield from _running(servers.PostgreSQL())


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    yield from _running(servers.Redis())


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    """``sqlite``, ``mariadb`` or ``postgresql``: parametrized with ALL or SERVERS."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str, request: pytest.FixtureRequest) -> servers.DatabaseServer | None:
    return None if kind == "sqlite" else request.getfixturevalue(kind)


@pytest.fixture(scope="module")
def _migrated(server: servers.DatabaseServer | None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Seeds]:
    url = new_database(server, tmp_path_factory.mktemp("database"))
    migrate.upgrade_sync(url)
    return url, asyncio.run(seeds(url))


@pytest.fixture
def url(_migrated: tuple[str, Seeds]) -> str:
    """Of a migrated database with nothing in it but the seeds. For tests that wait (asyncio) as for those that do not."""
    at, rows = _migrated
    with asyncio.Runner() as runner:
        runner.run(empty(at, rows))
    return at


def new_database(server: servers.DatabaseServer | None, directory: Path) -> str:
    """An empty one; its URL."""
    return f"sqlite+aiosqlite:///{directory / 'zlh.db'}" if server is None else server.create(f"zlh_t{next(_names)}")


async def seeds(url: str) -> Seeds:
    """What the migration put there."""
    database = Database(url)
    async with database.read() as tx:
        rows = {table.name: [dict(r._mapping) for r in await tx.execute(select(table))] for table in SEEDED}
    await database.close()
    return rows


async def empty(url: str, seeds: Seeds) -> None:
    """Row by row, and only where there are any: to truncate a table costs servers as much as to make it."""
    database = Database(url)
    async with database.write() as tx:
        counts = [select(literal(table.name).label("name")).where(exists(select(1).select_from(table))) for table in t.metadata.sorted_tables]
        filled = set((await tx.execute(union_all(*counts))).scalars())
        for table in reversed(t.metadata.sorted_tables):
            if table.name in filled and table is not t.audit:
                await tx.execute(delete(table))
        for table in SEEDED:
            if seeds[table.name]:
                await tx.execute(insert(table), seeds[table.name])
        if t.audit.name in filled:  # whose triggers refuse
            await _empty_audit(tx)
    await database.close()


async def _empty_audit(tx: Any) -> None:
    if tx.dialect == "postgresql":
        await tx.execute(text("ALTER TABLE audit DISABLE TRIGGER USER"))
        await tx.execute(text("TRUNCATE audit"))
        await tx.execute(text("ALTER TABLE audit ENABLE TRIGGER USER"))
    elif tx.dialect == "mysql":  # it fires no triggers there
        await tx.execute(text("TRUNCATE audit"))
    else:
        made = (await tx.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit'"))).all()
        for trigger in made:
            await tx.execute(text(f"DROP TRIGGER {trigger.name}"))
        await tx.execute(delete(t.audit))
        for trigger in made:
            await tx.conn.exec_driver_sql(trigger.sql)
