"""The network between simulated processes and the world. A call is sent, arrives, is answered; each of the three can fail by itself.

What was sent arrives whether its sender still lives or not. Latencies are draws by (seed, source, verb, target, number). A source may be
``down`` (nobody answers), ``slow`` (a factor), ``refusing`` (an answer, which says no), and calls may be lost before or after their effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from flows.errors import AmbiguousEffect, AutomationError, Busy, Temporary, Unreachable
from flows.simulate.keyed import draw
from flows.simulate.loop import BARE, Process, VirtualLoop, here

T = TypeVar("T")

#: Typical seconds of one way, by source; the tail is four times as long.
WAY_S = {"proxmox": 0.03, "agents": 0.01, "proxy": 0.005, "dns": 0.01, "engine": 0.02, "discord": 0.15, "redis": 0.001, "ssh": 0.05, "mail": 0.2}
#: A connection that nobody takes.
CONNECT_S = 2.0


@dataclass
class Trouble:
    """What is wrong with a source now. ``lose`` counts writes until the one that is lost: (before its effect, after it)."""

    down: int = 0
    slow: float = 1.0
    refusing: int = 0
    partial: int = 0
    lying: int = 0
    lose_before: int = 0
    lose_after: int = 0


@dataclass
class Wire:
    loop: VirtualLoop
    seed: int
    troubles: dict[str, Trouble] = field(default_factory=dict)
    #: (host, source) pairs without a route.
    cuts: dict[tuple[str, str], int] = field(default_factory=dict)
    numbers: dict[tuple[str, str, str], int] = field(default_factory=dict)
    #: Called with a source whose write may have happened although its sender heard nothing, or something else.
    doubted: Callable[[str], None] = lambda source: None
    #: Called with who was refused, what, and why: by the receiver, which looked at the call itself.
    refused: Callable[[Process | None, str, AutomationError], None] = lambda process, what, error: None

    def trouble(self, source: str) -> Trouble:
        found = self.troubles.get(source)
        if found is None:
            found = self.troubles[source] = Trouble()
        return found

    def open(self, host: str, source: str) -> bool:
        return not self.cuts.get((host, source)) and not self.trouble(source).down

    async def call(self, source: str, verb: str, target: str, effect: Callable[[], T], *, write: bool, limit_s: float) -> T:
        """The receiver's answer. ``effect`` happens at the receiver. Raises what it raises, Unreachable, AmbiguousEffect."""
        loop, process = self.loop, here()
        host = process.host if process is not None else ""
        key = (source, verb, target)
        number = self.numbers[key] = self.numbers.get(key, 0) + 1
        what = f"{source}: {verb} of {target}" if target else f"{source}: {verb}"
        trouble = self.trouble(source)
        if process is not None and process.at(f"wire:{source}:{verb}"):
            await BARE
        if not self.open(host, source):
            await loop.nap(min(CONNECT_S, limit_s))
            if process is not None and not write:
                process.told.setdefault("unknown", set()).add(source)
            raise Unreachable(what, why="no connection")
        way = WAY_S[source] * trouble.slow
        out, back = draw(self.seed, *key, number), draw(self.seed, *key, number, "back")
        answer: asyncio.Future[T] = loop.create_future()
        lost_before = lost_after = False
        if write:
            if trouble.lose_before:
                trouble.lose_before -= 1
                lost_before = not trouble.lose_before
            if trouble.lose_after:
                trouble.lose_after -= 1
                lost_after = not trouble.lose_after

        def arrive() -> None:
            if lost_before or not self.open(host, source):
                if write:
                    self.doubted(source)
                return
            if write and trouble.refusing:
                loop.after(way, give, None, Busy(what, why="it takes no writes at the moment"))
                return
            try:
                value, error = effect(), None
            except AutomationError as raised:
                value, error = None, raised
                if write:
                    self.refused(process, what, raised)
            if write and (lost_after or answer.done()):  # so late that its sender has given up
                self.doubted(source)
            if lost_after:
                return
            loop.after(way * (0.5 + back + (3 if back > 0.97 else 0)), give, value, error)

        def give(value: T | None, error: AutomationError | None) -> None:
            if not self.open(host, source):
                if write:
                    self.doubted(source)
            elif not answer.done():
                if error is not None:
                    answer.set_exception(error)
                else:
                    answer.set_result(value)  # type: ignore[arg-type]  # T may be None

        def expire() -> None:
            if not answer.done():
                if write:
                    self.doubted(source)
                why = f"no answer within {limit_s:g} s"
                error: Temporary = AmbiguousEffect(what, why=why) if write else Unreachable(what, why=why)
                answer.set_exception(error)

        loop.after(way * (0.5 + out + (3 if out > 0.97 else 0)), arrive)
        timer = loop.call_later(limit_s, expire)
        try:
            result = await answer
        except AutomationError:
            if process is not None and not write and verb != "nextid":  # which cannot tell of one number: the source is not silent
                process.told.setdefault("unknown", set()).add(source)
            raise
        finally:
            timer.cancel()
            if answer.done() and not answer.cancelled():
                answer.exception()
        if process is not None and not write:
            process.told.setdefault("unknown", set()).discard(source)
        elif process is not None and process.at(f"answer:{source}:{verb}"):
            await BARE
        return result
