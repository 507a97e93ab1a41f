"""How ``zlh`` prints: tables for people, JSON for programs, times in the local zone (or UTC), durations as people write them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from flows.errors import BadInput, Conflict, NotFound

Json = Annotated[bool, typer.Option("--json", help="print data instead of a table")]
Utc = Annotated[bool, typer.Option("--utc", help="times in UTC instead of the local zone")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="at most this many rows")]
Since = Annotated[str | None, typer.Option("--since", help="only younger than this: 90s, 15m, 2h, 3d")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def seconds(text: str, field: str = "duration") -> float:
    """``90s``, ``1h30m`` → seconds. Raises BadInput naming the option."""
    parts = _DURATION.findall(text)
    if not parts or "".join(f"{n}{u}" for n, u in parts) != text.replace(" ", ""):
        raise BadInput(field, text, why="is no duration", remedy="for example 90s, 15m, 2h or 1d12h")
    return float(sum(float(n) * _UNITS[u] for n, u in parts))


def duration(ms: float | None) -> str:
    """Milliseconds as people read them: ``0.8 s``, ``14 s``, ``3 m``, ``2 h``, ``4 d``."""
    if ms is None:
        return ""
    s = max(0.0, ms / 1000)
    if s < 10:
        return f"{s:.1f} s"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if s >= 2 * size:
            return f"{s / size:.0f} {unit}"
    return f"{s:.0f} s"


def moment(ms: int | None, utc: bool = False) -> str:
    """A time for people: today's without the date."""
    if ms is None:
        return ""
    at = datetime.fromtimestamp(ms / 1000, UTC)
    now = datetime.now(UTC)
    if not utc:
        at, now = at.astimezone(), now.astimezone()
    return at.strftime("%H:%M:%S" if at.date() == now.date() else "%Y-%m-%d %H:%M")


def iso(ms: int | None) -> str | None:
    """A time for programs."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def data(value: object) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def lines(rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines on stdout."""
    for row in rows:
        sys.stdout.write(json.dumps(dict(row), default=str) + "\n")


def text(line: str = "") -> None:
    sys.stdout.write(line + "\n")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], empty: str) -> None:
    """Columns padded with spaces; on a pipe the same, uncut. Small enough to need no library at every start."""
    if not rows:
        sys.stderr.write(empty + "\n")
        return
    cells = [[str("" if row.get(c) is None else row[c]).replace("\n", " ") for c in columns] for row in rows]
    widths = [max(len(c), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
    for cell in (list(columns), *cells):
        text("  ".join(value.ljust(width) for value, width in zip(cell, widths, strict=True)).rstrip())


def confirm(question: str, yes: bool) -> None:
    """Asks on a terminal; without one ``--yes`` is needed. Raises BadInput, or Conflict on a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInput("--yes", "missing", why=f"{question} cannot be asked without a terminal", remedy="add --yes")
    if not typer.confirm(question):
        raise Conflict("nothing done", why="you said no")


def by_prefix(ids: Sequence[str], given: str, what: str) -> str:
    """The one id that begins with ``given``. Raises NotFound, or BadInput where it is ambiguous."""
    found = [i for i in ids if i.startswith(given) or i.replace("-", "").endswith(given)]
    if given in ids:
        return given
    if not found:
        raise NotFound(f"{what} {given}", why="there is none", remedy=f"zlh {what}s")
    if len(found) > 1:
        raise BadInput(what, given, why=f"{len(found)} begin or end so", remedy="give more of the id")
    return found[0]
