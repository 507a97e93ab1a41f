"""The one path of a start, from an idle unit to a game that serves. Used by ``supervisor`` alone; every method raises UnitError."""

from __future__ import annotations

import asyncio
import time

from zlh_agent.config import Game, Supervision
from zlh_agent.ping import Pong, accepts, ping
from zlh_agent.unit import CannotStart, Look, Unit

#: Seconds that a run which was there already gets to answer, however old it is.
GRACE_S = 60.0


class Impossible(Exception):
    """Nothing was started, and trying again by ourselves would change nothing. ``kind`` is the failure's class."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"{kind}: {why}")
        self.kind, self.why = kind, why


class Died(Exception):
    """It ended before it served."""


class Late(Exception):
    """It runs and does not serve in time; the text says what it lacks."""


class Starting:
    def __init__(self, unit: Unit, game: Game, settings: Supervision) -> None:
        self._unit, self._game, self._settings = unit, game, settings
        self._grace_s = settings.poll_s

    async def launch(self, *, may_start: bool) -> Look:
        """A run of the unit, the present one if there is one; the last one where none may be started. Raises Impossible."""
        found = await self._unit.look()
        if not found.loaded:
            raise Impossible("not_prepared", f"there is no unit {self._game.unit}")
        if found.active or not may_start:
            self._grace_s = GRACE_S
            return found
        if await accepts(self._game.address, self._game.port, self._settings.ping_timeout_s):
            raise Impossible("port_in_use", f"something else already listens on {self._game.address} port {self._game.port}")
        try:
            await self._unit.start()
        except CannotStart as error:
            raise Impossible("cannot_start", str(error)) from error
        return await self._unit.look()

    async def until_ready(self, found: Look) -> Pong:
        """Raises Died, Late. The time counts from the run's begin, so that an agent's restart prolongs it by no more than
        :data:`GRACE_S`."""
        if not found.active:
            raise Died
        ends = max(found.since + self._game.ready_timeout_s, time.monotonic() + self._grace_s)
        ended = asyncio.create_task(self._unit.ended(found))
        try:
            while True:
                pong = await ping(self._game.address, self._game.port, self._settings.ping_timeout_s)
                if ended.done():
                    ended.result()
                    raise Died
                if pong.ok:
                    return pong
                if time.monotonic() >= ends:
                    raise Late(f"not ready within {self._game.ready_timeout_s:g} s: {pong.reason}")
                await asyncio.wait({ended}, timeout=self._settings.poll_s)
        finally:
            ended.cancel()
