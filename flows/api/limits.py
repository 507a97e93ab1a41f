"""How often one token or one address may ask. In memory, per process: a shield against hammering, not an account of use."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Keys remembered at once; the oldest are dropped, so that a flood of addresses costs memory only up to here.
MAX_KEYS = 20_000


class SlidingWindow:
    """At most ``limit`` in any ``window_s`` seconds, by two counters per key: the present window's, and the previous one's weighted by how
    much of it the sliding window still covers. ``clock`` is monotonic seconds."""

    def __init__(self, limit: int, window_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.window_s, self._clock = limit, window_s, clock
        self._counts: dict[str, tuple[int, int, int]] = {}  # key → window number, its count, the previous one's

    def retry_after(self, key: str) -> float | None:
        """Counts one request. None: go on. Else the seconds until one may come again; what was refused is not counted."""
        at = self._clock() / self.window_s
        window = int(at)
        number, now, before = self._counts.pop(key, (window, 0, 0))
        if number != window:
            now, before = 0, now if number == window - 1 else 0
        left = 1.0 - (at - window)
        allowed = now + int(before * left) < self.limit
        self._counts[key] = (window, now + allowed, before)  # at the end of the order: what is used stays longest
        if len(self._counts) > MAX_KEYS:
            self._counts.pop(next(iter(self._counts)))
        if allowed:
            return None
        if now < self.limit:  # the previous window still weighs too much
            return (left - (self.limit - now) / before) * self.window_s
        return (left + 1 / self.limit) * self.window_s
