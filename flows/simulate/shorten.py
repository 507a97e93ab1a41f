"""From a schedule that fails to a short script that fails in the same way: recent window, halves (ddmin), boundaries, durations.

A candidate counts only if the same invariant does not hold. Removing a fault moves no other draw, so the rest stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flows.simulate.plan import BOUNDARIES, Fault

#: Seconds simulated beyond the violation.
BEYOND_S = 900.0
#: Seconds before the violation in which what caused it is looked for first.
WINDOWS_S = (900.0, 3600.0)
Fails = Callable[[Sequence[Fault]], bool]


@dataclass
class Shortened:
    faults: list[Fault]
    replays: int


def shorten(faults: Sequence[Fault], at: float, fails: Fails, *, most: int = 120) -> Shortened:
    """``fails`` replays; ``at``: virtual seconds of the violation. At most ``most`` replays."""
    work = _Work(fails, most)
    present = [f for f in faults if f.at <= at]
    for window in WINDOWS_S:
        recent = [f for f in present if f.at + max(f.duration, 0.0) >= at - window]
        if len(recent) < len(present) and work.still(recent):
            present = recent
            break
    present = work.ddmin(present)
    present = work.anchored(present)
    present = work.shorter(present)
    return Shortened(present, work.replays)


class _Work:
    def __init__(self, fails: Fails, most: int) -> None:
        self._fails, self._most = fails, most
        self.replays = 0
        self._known: dict[tuple[Fault, ...], bool] = {}

    def still(self, faults: Sequence[Fault]) -> bool:
        key = tuple(faults)
        if key not in self._known:
            if self.replays >= self._most:
                return False
            self.replays += 1
            self._known[key] = self._fails(faults)
        return self._known[key]

    def ddmin(self, faults: list[Fault]) -> list[Fault]:
        if faults and self.still([]):
            return []
        parts = 2
        while len(faults) >= 2:
            size = -(-len(faults) // parts)
            for start in range(0, len(faults), size):
                rest = faults[:start] + faults[start + size :]
                if rest and self.still(rest):
                    faults, parts = rest, max(parts - 1, 2)
                    break
            else:
                if size == 1:
                    break
                parts = min(len(faults), parts * 2)
        return faults

    def anchored(self, faults: list[Fault]) -> list[Fault]:
        """A number of steps says little; a boundary's name, or the holder as target, says what was struck."""
        for n, fault in enumerate(faults):
            if fault.kind not in ("death", "pause") or not fault.arg.isdigit():
                continue
            for boundary in BOUNDARIES:
                candidate = [*faults[:n], replace(fault, arg=boundary), *faults[n + 1 :]]
                if self.still(candidate):
                    faults = candidate
                    break
        return faults

    def shorter(self, faults: list[Fault]) -> list[Fault]:
        for n in range(len(faults)):
            while faults[n].duration > 2:
                candidate = [*faults[:n], replace(faults[n], duration=round(faults[n].duration / 2, 1)), *faults[n + 1 :]]
                if not self.still(candidate):
                    break
                faults = candidate
        return faults
