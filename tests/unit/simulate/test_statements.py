"""Statements that were built once answer as SQLAlchemy's own way does, the first time and ever after, and fail as it does."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import JSON, Boolean, Column, ForeignKey, Integer, MetaData, String, Table, bindparam, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from flows.errors import Conflict
from flows.simulate.database import Store
from flows.simulate.loop import Process, VirtualLoop
from flows.simulate.statements import Prepared

META = MetaData()
T = Table(
    "things", META, Column("id", Integer, primary_key=True), Column("name", String(8), unique=True), Column("fit", Boolean),
    Column("more", JSON), Column("note", String(8), default="none"), Column("of", Integer, ForeignKey("things.id")),
)  # fmt: skip
PUT = insert(T)
FIT = select(T).where(T.c.fit.is_(True), T.c.name.in_(["a", "b", "c"])).order_by(T.c.id)
AMONG = select(T.c.id).where(T.c.id.in_(bindparam("ids", expanding=True)), T.c.id < bindparam("below")).order_by(T.c.id)
RENAME = update(T).where(T.c.id == bindparam("which"))
_UPSERT = upsert(T)
UPSERT = _UPSERT.on_conflict_do_update(index_elements=["id"], set_={"name": _UPSERT.excluded.name})


@pytest.fixture
def store(loop: VirtualLoop, tmp_path: Path) -> Store:
    made = Store(loop, str(tmp_path / "s.db"), 1)

    async def tables() -> None:
        async with made.database().write() as tx:
            await tx.conn.run_sync(META.create_all)

    loop.run_until_complete(tables())
    return made


def run(loop: VirtualLoop, store: Store, *calls: tuple[Any, Any]) -> list[Any]:
    """Each call's rows, as tuples with their names, or how many it wrote."""

    async def main() -> list[Any]:
        found: list[Any] = []
        async with store.database().write() as tx:
            for statement, parameters in calls:
                result = await tx.execute(statement, parameters)
                found.append([dict(row._mapping) for row in result] if statement.is_select else result.rowcount)
        return found

    return loop.run_until_complete(main())


def row(n: int, name: str, **more: Any) -> dict[str, Any]:
    return {"id": n, "name": name, "fit": n % 2 == 1, "more": more or None}


def prepared(store: Store, statement: Any, parameters: Any) -> bool:
    return isinstance(store.statements.prepared(statement, parameters), Prepared)


def test_answers_as_the_first_time(loop: VirtualLoop, store: Store) -> None:
    run(loop, store, (PUT, [row(1, "a", x=[1])]), (PUT, [row(2, "b"), row(3, "c", y="z")]), (PUT, row(4, "d")), (PUT, row(5, "e")))
    assert prepared(store, PUT, row(6, "f"))
    first, second = run(loop, store, (FIT, None), (FIT, None))
    assert first == second
    assert [(r["id"], r["fit"], r["more"], r["note"]) for r in second] == [(1, True, {"x": [1]}, "none"), (3, True, {"y": "z"}, "none")]


def test_a_list_has_any_length(loop: VirtualLoop, store: Store) -> None:
    run(loop, store, (PUT, [row(n, f"n{n}") for n in range(1, 6)]))
    found = run(loop, store, *((AMONG, {"ids": list(range(1, n)), "below": 5}) for n in (3, 3, 5, 1, 7)))
    assert [[r["id"] for r in rows] for rows in found] == [[1, 2], [1, 2], [1, 2, 3, 4], [], [1, 2, 3, 4]]
    assert prepared(store, AMONG, {"ids": [1, 2], "below": 5})


def test_counts_what_it_wrote(loop: VirtualLoop, store: Store) -> None:
    run(loop, store, (PUT, [row(1, "a"), row(2, "b")]))
    calls = [(RENAME, {"which": n, "name": name, "more": {"n": n}}) for n, name in ((1, "x"), (2, "y"), (9, "z"))]
    assert run(loop, store, *calls) == [1, 1, 0]
    assert run(loop, store, *((UPSERT, [row(1, f"u{n}"), row(n, f"v{n}")]) for n in (5, 6))) == [2, 2]
    found = run(loop, store, (select(T.c.id, T.c.name, T.c.more).order_by(T.c.id), None))[0]
    assert [(r["id"], r["name"], r["more"]) for r in found] == [(1, "u6", {"n": 1}), (2, "y", {"n": 2}), (5, "v5", None), (6, "v6", None)]


@pytest.mark.parametrize("wrong", [row(1, "new"), row(7, "a"), row(7, "new") | {"of": 99}], ids=["key", "unique", "foreign"])
def test_refuses_what_the_product_would_be_refused(loop: VirtualLoop, store: Store, wrong: dict[str, Any]) -> None:
    given = {"of": None}
    run(loop, store, (PUT, row(1, "a") | given), (PUT, row(2, "b") | given))
    assert prepared(store, PUT, wrong | {"of": wrong.get("of")})
    with pytest.raises(Conflict):
        run(loop, store, (PUT, given | wrong))


def test_a_statement_is_not_kept(loop: VirtualLoop, store: Store) -> None:
    query = select(T).where(T.c.id == 1)
    run(loop, store, (query, None), (query, None), (query, None))
    assert prepared(store, query, None)
    gone = weakref.ref(query)
    del query
    gc.collect()
    store._engine.clear_compiled_cache()
    gc.collect()
    assert gone() is None


def test_a_begin_that_is_cancelled_locks_nobody_out(loop: VirtualLoop, store: Store) -> None:
    p, tasks = Process("p", "h", "test", 0), list[asyncio.Task[None]]()
    p.arm(lambda process: tasks[0].cancel(), "tx:begin")

    async def work() -> None:
        async with store.database().write():
            raise AssertionError("it never begins")

    async def main() -> float:
        tasks.append(loop.spawn(p, work()))
        await asyncio.sleep(5)
        assert tasks[0].cancelled()
        began = loop.time()
        async with store.database().write() as tx:
            await tx.execute(PUT, row(1, "a"))
        return loop.time() - began

    assert loop.run_until_complete(main()) < 1
