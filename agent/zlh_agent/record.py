"""What the supervisor must not forget when the agent ends, at whatever instruction: one small file, written whole. Used by ``supervisor``."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from zlh_agent import durable
from zlh_agent.config import Supervision

_log = logging.getLogger(__name__)
Wanted = Literal["running", "stopped"]


@dataclass(slots=True)
class Operation:
    """An order under way. ``phase`` is what it does: ending, asked (``stop`` was written to the console) or starting."""

    job: str
    kind: str
    phase: str


@dataclass(slots=True)
class Record:
    """``wanted`` is the last order's; ``boot`` and ``run`` are those of the game's last start, ``ready_at`` its readiness in monotonic seconds.
    ``crashes`` are those in a row, ``due`` is when the next start after a crash is due (Unix seconds), ``error``: nobody starts it but on order."""

    wanted: Wanted = "stopped"
    operation: Operation | None = None
    boot: str = ""
    run: str = ""
    ready_at: float | None = None
    oom_kills: int = 0
    crashes: int = 0
    restarts: int = 0
    due: float | None = None
    error: bool = False
    last_crash: dict[str, Any] | None = None

    def crashed(self, report: dict[str, Any], settings: Supervision, *, gone: bool) -> str:
        """Takes up a crash (:func:`zlh_agent.crash.report`) and says the state that follows: another start is due, or none."""
        self.crashes = 1 if report["uptime_s"] >= settings.settle_s else self.crashes + 1
        self.last_crash, self.ready_at, self.run = report | {"count": self.crashes}, None, ""
        if self.wanted == "stopped":
            return "stopped"  # a person started it by hand after having it stopped
        if gone and self.crashes <= len(settings.backoff_s):
            self.due = report["at"] + settings.backoff_s[self.crashes - 1]
            return "crashed"
        self.error = True
        return "error"


def load(path: Path) -> Record:
    """A file that cannot be read is put aside, and what runs is seen from the unit."""
    try:
        raw = json.loads(path.read_text())
        operation = raw.pop("operation", None)
        record = Record(**_known(raw, Record))
        record.operation = Operation(**_known(operation, Operation)) if operation else None
    except FileNotFoundError:
        return Record()
    except (ValueError, TypeError, AttributeError) as error:
        _log.warning("%s cannot be read and is put aside: %s", path, error)
        path.replace(path.with_suffix(".bad"))
        return Record()
    return record


def _known(raw: dict[str, Any], kind: type[Record | Operation]) -> dict[str, Any]:
    """A newer release may have written more."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in raw.items() if name in names}


def save(path: Path, record: Record) -> None:
    """On disk before it returns. Raises OSError."""
    durable.write(path, json.dumps(asdict(record)))
