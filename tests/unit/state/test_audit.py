"""The audit log: lines come with their act, in order, and never go or change."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, text, update

from flows.errors import AutomationError
from flows.state import audit
from flows.state import tables as t
from flows.state.database import Database


async def test_lines_are_listed_newest_first_and_filtered(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        await audit.append(tx, "admin:eve", "pause", "all", detail={"until": None})
        await audit.append(tx, "system:controller", "repair.publish_dns", "s1", server_id="s1", operation_id="o1")
    clock.advance(1_000)
    async with timed.write() as tx:
        await audit.append_all(tx, [audit.Entry("admin:eve", "resume", "all"), audit.Entry("admin:bob", "pause", "s2", "s2")])
        await audit.append_all(tx, [])
    async with timed.read() as tx:
        everything = await audit.list_(tx)
        assert [(e.actor, e.action) for e in everything] == [
            ("admin:bob", "pause"),
            ("admin:eve", "resume"),
            ("system:controller", "repair.publish_dns"),
            ("admin:eve", "pause"),
        ]
        assert everything[3].detail == {"until": None}
        assert (everything[2].server_id, everything[2].operation_id, everything[2].at) == ("s1", "o1", clock.now - 1_000)
        assert await audit.list_(tx, actor="admin:eve") == [everything[1], everything[3]]
        assert await audit.list_(tx, action="pause") == [everything[0], everything[3]]
        assert await audit.list_(tx, server_id="s1") == [everything[2]]
        assert await audit.list_(tx, since=clock.now) == everything[:2]
        assert await audit.list_(tx, before_id=everything[1].id, limit=1) == [everything[2]]


async def test_no_act_no_line(timed: Database) -> None:
    with pytest.raises(RuntimeError):
        async with timed.write() as tx:
            await audit.append(tx, "admin:eve", "pause", "all")
            raise RuntimeError
    async with timed.read() as tx:
        assert await audit.list_(tx) == []


async def test_what_is_too_long_is_cut_and_not_refused(timed: Database) -> None:
    async with timed.write() as tx:
        await audit.append(tx, "a" * 99, "b" * 99, "c" * 999)
        [line] = await audit.list_(tx)
    assert (len(line.actor), len(line.action), len(line.subject)) == (64, 48, 160)


@pytest.mark.parametrize("statement", [update(t.audit).values(actor="nobody"), delete(t.audit), text("DELETE FROM audit WHERE id > 0")])
async def test_the_database_itself_refuses_change(timed: Database, statement: Any) -> None:
    async with timed.write() as tx:
        await audit.append(tx, "admin:eve", "pause", "all")
    with pytest.raises(AutomationError):
        async with timed.write() as tx:
            await tx.execute(statement)
    async with timed.read() as tx:
        assert len(await audit.list_(tx)) == 1
