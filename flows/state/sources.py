"""How each source has been answering, and stale edge entries seen but not yet confirmed (rows named ``sighting:<key>``).

Written by the sweep in two statements; read as part of the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import delete, select

from flows.domain.snapshot import SourceFact
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.upsert import upsert as _upsert

_SIGHTING = "sighting:"
_FORGET = delete(t.sources).where(t.sources.c.source.like(_SIGHTING + "%"))
_ALL = select(t.sources)


async def upsert(tx: Tx, facts: Sequence[SourceFact], sightings: Mapping[str, int] | None = None) -> None:
    """Writes how the sources answered. ``sightings``, where given, replaces all of them: key → consecutive sweeps seen."""
    rows = [{"source": f.source, "misses": f.misses, "since": f.since, "reason": f.reason[:255], "at": tx.now} for f in facts]
    if sightings is not None:
        rows += [{"source": _SIGHTING + k, "misses": n, "since": tx.now, "reason": "", "at": tx.now} for k, n in sightings.items()]
        await tx.execute(_FORGET)
    await _upsert(tx, t.sources, rows, key="source", update=("misses", "since", "reason", "at"))


async def all_(tx: Tx) -> tuple[dict[str, SourceFact], dict[str, int]]:
    """``(sources by name, sightings by key)``, in one query."""
    facts: dict[str, SourceFact] = {}
    sightings: dict[str, int] = {}
    for row in await tx.execute(_ALL):
        if row.source.startswith(_SIGHTING):
            sightings[row.source.removeprefix(_SIGHTING)] = row.misses
        else:
            facts[row.source] = SourceFact(row.source, row.misses, row.since, row.reason)
    return facts, sightings
