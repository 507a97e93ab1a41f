"""How many of what there are, for the metrics: three grouped statements, however many rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select

from flows.domain.server import ServerState
from flows.state import sweeps
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.operations import LIVE


@dataclass(frozen=True, slots=True)
class Census:
    """Counts by state; ``last_sweep_at`` in ms."""

    servers: Mapping[str, int]
    operations: Mapping[str, int]
    last_sweep_at: int | None


async def census(tx: Tx) -> Census:
    """Every state is named, also where it counts none: a series that vanishes would read as unknown."""
    s, o = t.servers.c, t.operations.c
    found = {r.state: r.n for r in await tx.execute(select(s.state, func.count().label("n")).group_by(s.state))}
    live = {r.state: r.n for r in await tx.execute(select(o.state, func.count().label("n")).where(o.state.in_(LIVE)).group_by(o.state))}
    last = await sweeps.last_finished(tx)
    return Census({x.value: found.get(x.value, 0) for x in ServerState}, {x: live.get(x, 0) for x in LIVE}, last.finished_at if last else None)
