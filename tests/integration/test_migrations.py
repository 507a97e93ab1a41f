"""The schema's way from every released revision, two at once, and killed on the way: on each of the databases."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import MetaData, func, insert, inspect, select, text

from flows.errors import Busy, Conflict, Temporary
from flows.state import migrate
from flows.state import tables as t
from flows.state.database import Database
from tests.support.databases import ALL, kind, mariadb, new_database, postgresql, server
from tests.support.servers import DatabaseServer

__all__ = ["kind", "mariadb", "postgresql", "server"]

pytestmark = [pytest.mark.timeout(180), pytest.mark.parametrize("kind", ALL, indirect=True)]


@pytest.fixture
def url(server: DatabaseServer | None, tmp_path: Path) -> str:
    """Of an empty database."""
    return new_database(server, tmp_path)


async def schema(url: str) -> tuple[list[Any], set[str], set[str]]:
    """``(differences to tables.py, tables, triggers)``."""

    def look(conn: Any) -> tuple[list[Any], set[str]]:
        context = MigrationContext.configure(conn, opts={"compare_type": conn.dialect.name != "mysql"})  # MariaDB's JSON reads as LONGTEXT
        return list(compare_metadata(context, t.metadata)), set(inspect(conn).get_table_names())

    triggers = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
        "mysql": "SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = DATABASE()",
        "postgresql": "SELECT DISTINCT tgname FROM pg_trigger WHERE NOT tgisinternal",
    }
    database = Database(url)
    try:
        async with database.read() as tx:
            differences, tables = await tx.conn.run_sync(look)
            return differences, tables, set((await tx.execute(text(triggers[tx.dialect]))).scalars())
    finally:
        await database.close()


async def fill(url: str, rows: int) -> dict[str, int]:
    """Puts ``rows`` more rows into every table as it is in that revision; how many each has now."""
    database = Database(url)
    async with database.write() as tx:
        found = MetaData()
        await tx.conn.run_sync(found.reflect)
        counts = {}
        for table in found.sorted_tables:
            if table.name == "alembic_version":
                continue
            for n in range(rows):
                await tx.execute(insert(table), {c.name: _value(c, n) for c in table.columns if not (c.name == "id" and c.autoincrement is True)})
            counts[table.name] = (await tx.execute(select(func.count()).select_from(table))).scalar_one()
    await database.close()
    return counts


def _value(column: Any, n: int) -> Any:
    if next(iter(column.foreign_keys), None) is not None or column.type.python_type is str:
        length = getattr(column.type, "length", None) or 1_000
        return '{"a": 1}' if length > 255 else f"row-{n}"[:length]  # the long ones may be MariaDB's JSON
    if column.type.python_type in (dict, list):
        return {"n": n}
    return bool(n % 2) if column.type.python_type is bool else 100 + n


async def count(url: str) -> dict[str, int]:
    database = Database(url)
    async with database.read() as tx:
        counts = {table.name: (await tx.execute(select(func.count()).select_from(table))).scalar_one() for table in t.metadata.sorted_tables}
    await database.close()
    return counts


@pytest.mark.parametrize("revision", migrate.revisions())
async def test_from_every_revision_to_the_head_with_all_rows(url: str, revision: str) -> None:
    await migrate.upgrade(url, revision)
    assert await migrate.current(url) == revision
    before = await fill(url, 3)
    await migrate.upgrade(url)
    differences, tables, triggers = await schema(url)
    assert differences == []
    assert tables == set(t.metadata.tables) | {"alembic_version"}
    assert {"audit_no_update"} < triggers
    after = await count(url)
    assert {name: after[name] for name in before if name in after} == before
    assert min(before.values()) >= 3


async def test_two_at_once(url: str) -> None:
    """Two processes, on a database where nothing is yet."""
    started = [await _start(url) for _ in range(2)]
    for process in started:
        out, errors = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == 0, (out + errors).decode()[-2_000:]
    assert (await schema(url))[0] == []


async def test_killed_on_the_way(url: str, kind: str) -> None:
    """After nine tables: SQLite and PostgreSQL have nothing of it, MariaDB keeps each and the next run ends it."""
    process = await _start(url, die_after=9)
    await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == -9
    _, tables, _ = await schema(url)
    assert len(tables - {"alembic_version"}) == (9 if kind == "mariadb" else 0)
    await migrate.upgrade(url)
    differences, tables, triggers = await schema(url)
    assert differences == []
    assert len(triggers) == 2
    assert tables == set(t.metadata.tables) | {"alembic_version"}
    counts = await count(url)
    assert (counts["plan_limits"], counts["epochs"], counts["control"]) == (2, 1, 2)


@pytest.mark.parametrize("statement", range(1, 80, 6))
@pytest.mark.soak
async def test_killed_behind_any_statement(url: str, statement: int) -> None:
    process = await _start(url, die_after_any=statement)
    await asyncio.wait_for(process.communicate(), 120)
    await migrate.upgrade(url)
    differences, _, triggers = await schema(url)
    assert differences == []
    assert len(triggers) == 2
    counts = await count(url)
    assert (counts["plan_limits"], counts["epochs"], counts["control"]) == (2, 1, 2)


async def test_an_older_program_refuses_a_newer_schema_by_name(url: str) -> None:
    await migrate.upgrade(url)
    database = Database(url)
    async with database.write() as tx:
        await tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    for act in (migrate.upgrade, migrate.check):
        with pytest.raises(Conflict, match=r"9999.*newer") as refused:
            await act(url)
        assert migrate.head() in str(refused.value)


async def test_a_schema_that_is_missing_or_old_is_told_with_the_remedy(url: str) -> None:
    with pytest.raises(Conflict, match="zlh migrate"):
        await migrate.check(url)
    await migrate.upgrade(url)
    await migrate.check(url)


async def test_an_upgrade_that_waits_for_another_says_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_WAIT_S", 1)
    process = await _start(url, stop_after=3)
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"stopped\n"
        with pytest.raises((Busy, Temporary)) as told:
            await migrate.upgrade(url)
        assert "upgrade" in str(told.value) or "locked" in str(told.value)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


_PROGRAM = """
import os, signal, sys, time
from sqlalchemy import event
from sqlalchemy.engine import Engine
from flows.state import migrate
die, die_any, stop = (int(os.environ.get(n, 0)) for n in ("DIE", "DIE_ANY", "STOP"))
made = every = 0
@event.listens_for(Engine, "after_cursor_execute")
def count(conn, cursor, statement, parameters, context, executemany):
    global made, every
    begins = statement.lstrip().upper()
    made += begins.startswith("CREATE TABLE") and "alembic_version" not in statement
    every += begins.startswith(("CREATE", "INSERT", "UPDATE"))
    if (die and made >= die) or (die_any and every >= die_any):
        os.kill(os.getpid(), signal.SIGKILL)
    if stop and made >= stop:
        print("stopped", flush=True)
        time.sleep(600)
migrate.upgrade_sync(os.environ["ZLH_DATABASE__URL"])
"""


async def _start(url: str, *, die_after: int = 0, die_after_any: int = 0, stop_after: int = 0) -> asyncio.subprocess.Process:
    """A process that upgrades; it dies (or stands still) behind so many tables, or statements that write."""
    environment = os.environ | {"ZLH_DATABASE__URL": url, "DIE": str(die_after), "DIE_ANY": str(die_after_any), "STOP": str(stop_after)}
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    return await asyncio.create_subprocess_exec(sys.executable, "-c", _PROGRAM, env=environment, **pipes)
