"""The schema: from nothing to what the code expects, on every database alike."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import delete, select, text, update

from flows.errors import Conflict
from flows.state import audit, customers, migrate
from flows.state import tables as t
from flows.state.database import Database


async def test_upgrade_from_nothing_gives_the_schema_of_the_tables(db: Database) -> None:
    def differences(conn: Any) -> list[Any]:
        context = MigrationContext.configure(conn, opts={"compare_type": conn.dialect.name != "mysql"})  # MariaDB's JSON reads as LONGTEXT
        return list(compare_metadata(context, t.metadata))

    async with db.engine.connect() as conn:
        assert await conn.run_sync(differences) == [], "tables.py changed: bring migrations/versions along"


async def test_revision_is_the_head_and_a_second_upgrade_changes_nothing(db: Database, db_url: str) -> None:
    assert await migrate.current(db_url) == migrate.head()
    async with db.read() as tx:
        before = (await tx.execute(select(t.control).order_by(t.control.c.name))).all()
    await migrate.upgrade(db_url)
    async with db.read() as tx:
        assert (await tx.execute(select(t.control).order_by(t.control.c.name))).all() == before


async def test_two_upgrades_at_once_of_one_new_database(tmp_path: Any) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/deep/er/zlh.db"
    await asyncio.gather(migrate.upgrade(url), migrate.upgrade(url))
    assert await migrate.current(url) == migrate.head()


async def test_downgrade_leaves_nothing_and_upgrade_works_again(tmp_path: Any) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/zlh.db"
    await migrate.upgrade(url)
    await migrate.downgrade(url)
    assert await migrate.current(url) is None
    await migrate.upgrade(url)
    assert await migrate.current(url) == migrate.head()


async def test_seeds(db: Database) -> None:
    async with db.read() as tx:
        control = {r.name: r.value for r in await tx.execute(select(t.control))}
        assert control["repair_level"] == 1
        assert 0 <= tx.now - control["generation"] < 3_600_000
        epoch = (await tx.execute(select(t.epochs))).one()
        assert (epoch.name, epoch.holder) == ("reconcile", None)
        assert await customers.get_plan(tx, "basic") is not None
        assert await customers.get_plan(tx, "pro") is not None


@pytest.mark.parametrize("attack", [update(t.audit).values(actor="nobody"), delete(t.audit)], ids=["update", "delete"])
async def test_the_database_itself_refuses_to_change_the_audit_log(db: Database, attack: Any) -> None:
    async with db.write() as tx:
        await audit.append(tx, "admin:test", "test", "nothing")
    with pytest.raises(Conflict, match="append-only"):
        async with db.write() as tx:
            await tx.execute(attack)
    async with db.read() as tx:
        assert [line.actor for line in await audit.list_(tx)] == ["admin:test"]


async def test_truncating_the_audit_log_is_refused_where_triggers_can(db: Database) -> None:
    if db.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no TRUNCATE, MariaDB no trigger on it")
    with pytest.raises(Conflict, match="append-only"):
        async with db.write() as tx:
            await tx.execute(text("TRUNCATE audit"))
