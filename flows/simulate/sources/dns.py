"""The zone's port: transfers, and updates with prerequisites on the values seen."""

from __future__ import annotations

from collections.abc import Sequence

from flows.clients.dns_names import OWNER_LABEL, SRV_LABEL, owned, owner_of, owner_text
from flows.domain.sources import Record, ZoneView
from flows.errors import Conflict, Unproven, Unreachable
from flows.simulate.loop import here
from flows.simulate.world import World

LIMIT_S = 5.0


class Dns:
    def __init__(self, world: World) -> None:
        self.w = world
        self._seen: tuple[int, ZoneView] = (-1, ZoneView({}, {}))

    async def zone(self) -> ZoneView:
        try:
            return await self.w.wire.call("dns", "transfer", "", self._transfer, write=False, limit_s=3 * LIMIT_S)
        except (Unreachable, Unproven):
            return await self.w.wire.call("dns", "transfer", "", self._transfer, write=False, limit_s=3 * LIMIT_S)

    def _transfer(self) -> ZoneView:
        if self.w.wire.trouble("dns").partial:
            raise Unproven("DNS: transfer", why="it broke off: a part of the zone is unknown")
        if self.w.wire.trouble("dns").lying:  # complete, and of an older zone: without anything of ours
            return ZoneView({}, {})
        if self._seen[0] != self.w.zone_version:
            owners = {}
            for label, records in self.w.zone.items():
                if label.startswith(OWNER_LABEL) and (owner := owner_of(records)) is not None:
                    owners[label.removeprefix(OWNER_LABEL)] = owner
            self._seen = (self.w.zone_version, ZoneView(dict(self.w.zone), owners))
        return self._seen[1]

    async def records(self, name: str) -> tuple[Record, ...]:
        view = await self.zone()
        return tuple(r for label in _labels(name) for r in view.records.get(label, ()))

    async def publish(self, name: str, wanted: Sequence[Record], owner: str, seen: Sequence[Record]) -> None:
        process, sent = here(), self.w.loop.time()

        def effect() -> None:
            now = tuple(r for label in _labels(name) for r in self.w.zone.get(label, ()))
            self.w.require(name, now, tuple(seen))
            after: dict[str, tuple[Record, ...]] = dict.fromkeys(_labels(name), ())
            for record in wanted:
                after[record.name] = (*after[record.name], record)
            after[OWNER_LABEL + name] = (Record(OWNER_LABEL + name, "TXT", owner_text(owner)),)
            self.w.change_zone(name, after, "publish", owner, process, sent)

        await self.w.wire.call("dns", "publish", name, effect, write=True, limit_s=LIMIT_S)

    async def withdraw(self, name: str, owner: str, seen: Sequence[Record]) -> None:
        process, sent = here(), self.w.loop.time()

        def effect() -> None:
            txt = self.w.zone.get(OWNER_LABEL + name, ())
            if owner_of(txt) != owner:
                raise Conflict(f"DNS: {name}", why="it is not ours any more")
            self.w.require(name, self.w.zone.get(name, ()), tuple(r for r in seen if r.name == name))
            self.w.change_zone(name, dict.fromkeys(_labels(name), ()), "withdraw", owner, process, sent)

        await self.w.wire.call("dns", "withdraw", name, effect, write=True, limit_s=LIMIT_S)


def _labels(name: str) -> tuple[str, ...]:
    assert owned(name)
    return name, SRV_LABEL + name, OWNER_LABEL + name
