"""One drift of a cell, and what its receivers had written down before it was healed."""

from __future__ import annotations

from collections.abc import Collection

from tests.support.drifts import Drift
from tests.support.rig import Rig

#: How repairs of a cell may end, all of them together with at most one that repaired.
ENDS = frozenset({"repaired", "fenced", "unverified", "already_healed", "failed"})


class Watch:
    """Begun when it is wrong and nobody has seen it yet."""

    def __init__(self, rig: Rig, drift: Drift, effects: int, refused: int, earlier: Collection[str]) -> None:
        self.rig, self.drift, self._effects, self._refused, self._earlier = rig, drift, effects, refused, earlier

    @classmethod
    async def begun(cls, rig: Rig, drift: Drift) -> Watch:
        state = await rig.state()
        earlier = {row.id for row in await rig.repairs()}  # by their ids: a cell may set the clock
        return cls(rig, drift, len(drift.effects(rig, state)), len(drift.refused(rig, state)), earlier)

    async def healed(self) -> bool:
        return await self.drift.healed(self.rig, await self.rig.state())

    async def refused(self) -> bool:
        """Whether a late call was, or came to nothing."""
        return len(self.drift.refused(self.rig, await self.rig.state())) > self._refused

    async def effects(self) -> list[object]:
        return self.drift.effects(self.rig, await self.rig.state())[self._effects :]

    async def one_effect(self) -> None:
        """Right at the end, by one effect at the receiver; at Proxmox a convergent one may have come late. Each intent has one outcome."""
        assert await self.healed()
        effects = await self.effects()
        assert len(effects) == 1 or (self.drift.convergent and len(effects) == 2), effects
        rows = [row for row in await self.rig.repairs() if row.action == self.drift.action and row.id not in self._earlier]
        assert [row.outcome for row in rows].count("repaired") <= 1, rows
        assert {row.outcome for row in rows} <= ENDS, rows
