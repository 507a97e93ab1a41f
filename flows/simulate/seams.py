"""Where the product asks the machine for time or chance without being handed it: replaced for as long as a simulation runs.

Deciding and the store take the database's clock; the loop's own time serves every ``asyncio`` timer. What is left is here, by name.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import structlog

from flows.act import stepping as stepping_module
from flows.simulate.keyed import draw
from flows.simulate.loop import VirtualLoop, here
from flows.state import ids as ids_module


class Ids:
    """UUIDs in version 7's form: virtual milliseconds, then a number, then the seed. Each is made once, and rows sort by their creation."""

    def __init__(self, loop: VirtualLoop, seed: int, epoch_ms: int) -> None:
        self._loop, self._seed, self._epoch = loop, seed, epoch_ms
        self._number = 0

    def __call__(self) -> uuid.UUID:
        self._number += 1
        at = self._epoch + int(self._loop.time() * 1000)
        high = (at << 16) | 0x7000 | (self._number >> 24 & 0xFFF)
        low = (0x2 << 62) | ((self._number & 0xFFFFFF) << 32) | (self._seed & 0xFFFFFFFF)
        return uuid.UUID(int=(high << 64) | low)


def _steady(low: float, high: float) -> float:
    """The jitter of a pause: by the process and the time, so that neither other processes' fates nor the turns that a call takes move it."""
    process = here()
    return low + (high - low) * draw(process.name, time.monotonic()) if process is not None else low


#: Looked into for names that they imported: what they do not export is a seam here all the same.
ids: Any = ids_module
stepping: Any = stepping_module


@contextmanager
def replaced(loop: VirtualLoop, seed: int, epoch_ms: int) -> Iterator[None]:
    """``time.monotonic`` is the loop's time; ids are numbers; a retry's jitter is a keyed draw; nothing is logged."""
    monotonic, made, chance = time.monotonic, ids.uuid7, stepping.random
    time.monotonic = loop.time
    ids.uuid7 = Ids(loop, seed, epoch_ms)
    stepping.random = SimpleNamespace(uniform=_steady)  # the one function that is used of the module
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=False)
    random.seed(seed)
    try:
        yield
    finally:
        time.monotonic, ids.uuid7, stepping.random = monotonic, made, chance
        structlog.reset_defaults()
