"""The seam between ``supervisor`` and what runs the game: systemd in a container (:mod:`systemd`), a child process in tests."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Protocol


class UnitError(Exception):
    """It is not known what the unit does: no answer, or none that can be read. Never taken for "it does not run"."""


class CannotStart(Exception):
    """The unit was not started; the text says why."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a main process ended: exactly one is set. ``oom``: the system says that memory ran out."""

    code: int | None = None
    signal: int | None = None
    oom: bool = False

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                return f"killed by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"killed by signal {self.signal}"
        return "ended" if self.code is None else f"exit code {self.code}"


@dataclass(frozen=True, slots=True)
class Look:
    """What the system says now. ``active``: some process of it is there, even if it is about to end. ``run`` tells one run from every other,
    ``since`` is its begin in monotonic seconds; ``exit`` is the last run's, None while one is active or where the system does not know."""

    loaded: bool
    active: bool
    pid: int | None = None
    run: str = ""
    since: float = 0.0
    exit: Exit | None = None


class Unit(Protocol):
    """Every method but ``console`` and ``drain`` raises UnitError."""

    async def look(self) -> Look: ...

    async def start(self) -> None:
        """Returns when its process was made. Raises CannotStart."""

    async def signal(self, number: signal.Signals) -> None:
        """To every process of it. Harmless where there is none."""

    async def ended(self, look: Look) -> None:
        """Returns when the main process of that run has ended."""

    def console(self, line: str) -> bool:
        """Writes one line; False where nobody can read it. Only while it is active: the console of an idle unit starts it."""

    def drain(self) -> None:
        """Takes back what was written and not read: it would start the unit again after its end."""

    async def tail(self, run: str, lines: int) -> tuple[str, ...]:
        """The last lines of a run's output, as far as they are known."""

    async def shutting_down(self) -> bool:
        """Whether the whole container is going down."""
