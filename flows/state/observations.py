"""What was last known of each server. Written by the sweep for all at once, and by the steps of an operation for its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select

from flows.domain.agent import Observation, WorkloadState
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.upsert import upsert as _upsert

_COLUMNS = (
    "server_id", "at", "reachable", "ready", "state", "misses", "unready", "operation", "players",
    "provisioning_complete", "last_crash", "reason",
)  # fmt: skip


_ALL = select(*(t.observations.c[name] for name in _COLUMNS))


async def upsert(tx: Tx, observations: Sequence[Observation]) -> None:
    """Writes any number in one statement; the newest observation of a server replaces the one before."""
    rows = [
        {
            **{c: getattr(o, c) for c in _COLUMNS},
            "state": None if o.state is None else o.state.value,
            "operation": None if o.operation is None else o.operation[:64],
            "last_crash": None if o.last_crash is None else dict(o.last_crash),
            "reason": o.reason[:255],
        }
        for o in observations
    ]
    await _upsert(tx, t.observations, rows, key="server_id", update=_COLUMNS[1:])


async def get(tx: Tx, server_id: str) -> Observation | None:
    row = (await tx.execute(_ALL.where(t.observations.c.server_id == server_id))).one_or_none()
    return None if row is None else _observation(*row)


async def all_(tx: Tx) -> dict[str, Observation]:
    """By server id."""
    return {row[0]: _observation(*row) for row in await tx.execute(_ALL)}


async def forget(tx: Tx, server_id: str) -> None:
    """A deleted server is observed no more."""
    await tx.execute(delete(t.observations).where(t.observations.c.server_id == server_id))


def to_observation(row: Any) -> Observation:
    """A row that holds, among others, the table's columns under their names."""
    return _observation(*(getattr(row, name) for name in _COLUMNS))


def _observation(server_id: str, at: int, reachable: bool, ready: bool | None, state: str | None, *rest: Any) -> Observation:
    """A row in the order of ``_COLUMNS``: by position, since a look-up by name costs a sweep of 10,000 servers a third of a second."""
    return Observation(server_id, at, reachable, ready, None if state is None else WorkloadState(state), *rest)
