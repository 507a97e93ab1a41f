"""How a unit is brought to its end, and how an end is waited for. Used by ``supervisor`` alone; every method raises UnitError."""

from __future__ import annotations

import asyncio
import signal
import time

from zlh_agent.config import Game, Supervision
from zlh_agent.unit import Look, Unit

#: Seconds between two looks while processes of the unit are left.
LOOK_S = 0.1


class Ending:
    def __init__(self, unit: Unit, game: Game, settings: Supervision) -> None:
        self._unit, self._stop_s = unit, game.stop_timeout_s
        self._signals = ((signal.SIGTERM, settings.term_timeout_s), (signal.SIGKILL, settings.kill_timeout_s))
        self._look_s = min(LOOK_S, settings.poll_s)

    async def gently(self, *, asked: bool) -> bool:
        """``stop`` on the console, then :meth:`hard`. ``asked``: it may have been written already by an agent that was killed, and is not written
        again, since what the game does not read would start its unit anew. False if nothing ended it."""
        if (asked or self._unit.console("stop")) and await self._gone(self._stop_s):
            return True
        return await self.hard()

    async def hard(self) -> bool:
        """TERM, then KILL. False if even that did not end it."""
        for number, timeout_s in self._signals:
            self._unit.drain()
            await self._unit.signal(number)
            if await self._gone(timeout_s):
                return True
        return False

    async def settled(self, run: str) -> Look:
        """The unit once the other processes of that run are gone too, or as it is after a while."""
        ends = time.monotonic() + self._stop_s
        while True:
            found = await self._unit.look()
            if not found.active or found.run != run or time.monotonic() > ends:
                return found
            await asyncio.sleep(self._look_s)

    async def _gone(self, timeout_s: float) -> bool:
        """Whether no process of it is left within ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                while (found := await self._unit.look()).active:
                    await self._unit.ended(found)
                    self._unit.drain()
                    if (await self._unit.look()).active:
                        await asyncio.sleep(self._look_s)
        except TimeoutError:
            return False
        return True
