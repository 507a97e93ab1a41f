"""How ``zlh`` prints: tables for people, JSON for programs, times in the local zone (or UTC), durations as people write them.

Plain text without colours, so that ``NO_COLOR`` and pipes need no care. Only on a terminal are long cells cut.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from flows.errors import BadInput, Conflict

Json = Annotated[bool, typer.Option("--json", help="print data instead of a table")]
Utc = Annotated[bool, typer.Option("--utc", help="times in UTC instead of the local zone")]
Wide = Annotated[bool, typer.Option("--wide", help="cut nothing, however wide the terminal is")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="at most this many rows")]
Since = Annotated[str | None, typer.Option("--since", help="only younger than this: 90s, 15m, 2h, 3d")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
#: The longest duration that means something here, in seconds: ten years.
LONGEST_S = 3650 * 86_400.0
#: Names of times (ms) that do not end in ``_at``.
_TIMES = frozenset({"at", "now", "until"})
_GAP = 2


def seconds(text: str, field: str = "duration") -> float:
    """``90s``, ``1h30m`` → seconds, more than none and at most ten years. Raises BadInput naming the option."""
    parts = _DURATION.findall(text)
    if not parts or "".join(f"{n}{u}" for n, u in parts) != text.replace(" ", ""):
        raise BadInput(field, text, why="is no duration", remedy="for example 90s, 15m, 2h or 1d12h")
    total = float(sum(float(n) * _UNITS[u] for n, u in parts))
    if not 0 < total <= LONGEST_S:
        raise BadInput(field, text, why="is no time at all" if total <= 0 else "is more than ten years", remedy="for example 90s, 15m, 2h or 1d12h")
    return total


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


def program(value: Any, name: str = "") -> Any:
    """Data for programs: times become RFC 3339 in UTC by their names, whatever the depth; the rest stays."""
    if isinstance(value, Mapping):
        inner = name if name.endswith("_at") else ""
        return {str(key): program(item, inner or str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [program(item, name) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if (name in _TIMES or name.endswith("_at")) and isinstance(value, int) and not isinstance(value, bool):
        return iso(value)
    return value


def plain(value: object) -> str:
    """A setting's value as one would write it."""
    return ",".join(str(item) for item in value) if isinstance(value, tuple | list) else "" if value is None else str(value)


def write(words: str) -> None:
    """To stdout. A reader that has enough, as ``head`` does, ends the command without a complaint."""
    try:
        sys.stdout.write(words)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def data(value: object) -> None:
    """One JSON document on stdout."""
    write(json.dumps(value, indent=1, default=str, ensure_ascii=False) + "\n")


def lines(rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines on stdout."""
    for row in rows:
        write(json.dumps(dict(row), default=str, ensure_ascii=False) + "\n")


def text(line: str = "") -> None:
    write(line + "\n")


def remark(line: str) -> None:
    """Said to the person beside the output, which a pipe would carry away."""
    sys.stderr.write(line + "\n")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], empty: str, *, wide: bool = False) -> None:
    """Columns padded with spaces. Small enough to need no library at every start."""
    if not rows:
        remark(empty)
        return
    cells = [[str("" if row.get(c) is None else row[c]).replace("\n", " ") for c in columns] for row in rows]
    widths = [max(len(c), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
    if not wide and sys.stdout.isatty():
        widths = fitting(widths, [len(c) for c in columns], shutil.get_terminal_size().columns)
    for cell in (list(columns), *cells):
        text((" " * _GAP).join(_cut(value, width).ljust(width) for value, width in zip(cell, widths, strict=True)).rstrip())


def fitting(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths cut so that a line fits: the widest column gives first, none below its title or 8."""
    widths, floor = list(widths), [max(n, 8) for n in least]
    while sum(widths) + _GAP * (len(widths) - 1) > room:
        spare, index = max((width - low, i) for i, (width, low) in enumerate(zip(widths, floor, strict=True)))
        if spare <= 0:
            break
        widths[index] -= 1
    return widths


def _cut(value: str, width: int) -> str:
    return value if len(value) <= width else value[: width - 1] + "…"


def whole(row: Mapping[str, Any], utc: bool) -> None:
    """One row, a line per field."""
    width = max(len(key) for key in row)
    for key, value in row.items():
        shown = moment(value, utc) if (key.endswith("_at") or key in _TIMES) and isinstance(value, int) else value
        if isinstance(shown, Mapping | list):
            shown = json.dumps(shown, default=str, ensure_ascii=False) if shown else ""
        text(f"{key.ljust(width)}  {'' if shown is None else shown}".rstrip())


def confirm(question: str, yes: bool) -> None:
    """Asks on a terminal; without one ``--yes`` is needed. Raises BadInput, or Conflict on a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInput("--yes", "missing", why=f"{question!r} cannot be asked without a terminal", remedy="add --yes")
    if not typer.confirm(question):
        raise Conflict("nothing done", why="you said no")
