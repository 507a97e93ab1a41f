"""What the demo found: one row per fault, as a table and as data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass
class Row:
    """``seen_s`` and ``healed_s`` count from the fault's begin. ``why`` stands where nothing was healed, and says why that is right."""

    fault: str
    seen_s: float | None = None
    healed_s: float | None = None
    why: str = ""
    channels: tuple[str, ...] = ()
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures

    def expect(self, held: bool, what: str) -> None:
        """Notes an expectation; one that did not hold fails the demo."""
        if not held:
            self.failures.append(what)


def table(rows: Sequence[Row], seconds: float) -> Table:
    """The verdict for people."""
    shown = Table(title=f"zlh demo: {sum(r.ok for r in rows)} of {len(rows)} as expected, in {seconds:.0f} s", title_justify="left")
    for name in ("fault", "seen after", "healed after, or why not", "alert", ""):
        shown.add_column(name)
    for row in rows:
        healed = f"{row.healed_s:.0f} s" if row.healed_s is not None else ""
        shown.add_row(
            row.fault,
            "" if row.seen_s is None else f"{row.seen_s:.0f} s",
            "; ".join(part for part in (healed, row.why) if part),
            ", ".join(row.channels) or "none",
            "ok" if row.ok else "FAILED: " + "; ".join(row.failures),
        )
    return shown


def write(rows: Sequence[Row], seconds: float, file: Path) -> None:
    """The same as data."""
    data = {"ok": all(r.ok for r in rows), "seconds": round(seconds, 1), "rows": [{**asdict(r), "ok": r.ok} for r in rows]}
    file.write_text(json.dumps(data, indent=1) + "\n")


def show(rows: Sequence[Row], seconds: float, console: Console) -> None:
    console.print(table(rows, seconds))
