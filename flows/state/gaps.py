"""The lowest free number of a range, found by one query however many are taken. Used by VMIDs and addresses."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Integer, Select, exists, func, literal, select, union_all

from flows.state.database import Tx


async def lowest_free(tx: Tx, column: Column[Any], first: int, last: int, *, never: Collection[int] = ()) -> int | None:
    """The smallest number from ``first`` to ``last`` that ``column`` does not hold and ``never`` does not name; None: all are taken.

    A free number is ``first``, or follows one that is taken or excluded. The walk along the index ends at the first gap, so the
    price is the length of the taken prefix. Not a reservation: insert it, and ask again when somebody was faster.
    """
    found = (await tx.execute(_query(column, first, last, frozenset(never)))).scalar_one_or_none()
    return None if found is None else int(found)


@lru_cache(maxsize=64)
def _query(column: Column[Any], first: int, last: int, never: frozenset[int]) -> Select[tuple[int]]:
    """Ranges come from settings, so there are few; building this costs more than asking it."""
    rows = column.table.alias("walked")
    walked = rows.c[column.name]
    gap = (
        select((walked + 1).label("n"))
        .where(walked >= first, walked < last, (walked + 1).not_in(sorted(never)), _free(column, walked + 1))
        .order_by(walked)
        .limit(1)
        .subquery("gap")
    )
    starts = [n for n in {first, *(x + 1 for x in never)} if first <= n <= last and n not in never]
    arms: list[Any] = [select(gap.c.n)]
    arms += [select(literal(n, Integer).label("n")).where(_free(column, literal(n, Integer))) for n in sorted(starts)]
    candidates = union_all(*arms).subquery("candidates")
    return select(func.min(candidates.c.n))


def _free(column: Column[Any], number: Any) -> Any:
    taken = column.table.alias()
    return ~exists(select(1).where(taken.c[column.name] == number))
