"""What ``zlh validate`` says: problems with the rows and objects concerned and the command that mends them, and what could not be looked at.

Unknown is not clean: a report is clean only if nothing was found and everything could be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """The parts of a validation, in the order in which they run after a migration."""

    DATABASE = "database"  # M1
    RESET = "reset"  # M2
    WORKERS = "workers"  # M3
    RESTORE = "restore"  # M4
    PROVISIONING = "provisioning"  # M5


@dataclass(frozen=True, slots=True)
class Problem:
    """``rule`` names what is violated; ``objects`` the rows (``servers:<id>``) and things (``ct:10017@pve2``) concerned; ``remedy`` is a command."""

    part: Part
    rule: str
    objects: tuple[str, ...]
    says: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Unlooked:
    """A rule, or several, that could not be judged, and why."""

    part: Part
    what: str
    why: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """``looked``: what was looked at, a line each, for people."""

    problems: tuple[Problem, ...] = ()
    unlooked: tuple[Unlooked, ...] = ()
    looked: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return not self.problems and not self.unlooked


def merged(reports: Iterable[Report]) -> Report:
    """Several reports as one, in order."""
    parts = list(reports)
    return Report(
        tuple(p for r in parts for p in r.problems), tuple(u for r in parts for u in r.unlooked), tuple(line for r in parts for line in r.looked)
    )
