"""One controlled creation (M5): what it left in the database and the world while it lived, and after it was deleted. Counts, not opinions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Made:
    """Of one order. ``runs``: attempts that a run claimed; ``engine_runs`` None: the engine gave no answer. ``agent``: what is wrong with the
    agent's own answer, empty: nothing. ``deployments``: times that the agent was put there; ``delivered``: alerts that their channel has."""

    name: str
    server_id: str
    operation_id: str
    records: int
    operations: int
    runs: int
    engine_runs: int | None
    containers: int
    deployments: int
    agent: str
    alerts: int
    delivered: int


@dataclass(frozen=True, slots=True)
class Left:
    """After the deletion: what should be gone and is not, as (object, what it is, command)."""

    things: tuple[tuple[str, str, str], ...] = ()
