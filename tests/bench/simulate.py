"""The simulator: real processor seconds per virtual day of 50 servers, linear in servers × hours, and where they go.

Times are processor seconds, start-up included: a busy machine does not move them much. The profile is of samples of the running stack, so that
nothing is weighed by how many small functions it is made of. Run by ``make bench``, or alone by its module name.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from flows.simulate import running
from flows.simulate.simulation import Order, directory

LIMIT_S = 20.0
#: Microseconds of one server's minute may grow so much from the first size to a larger one.
LINEAR = 1.3
SIZES = ((25, 24.0), (50, 6.0), (50, 12.0), (50, 24.0), (100, 24.0))
SAMPLE_S = 0.004
#: A part by the innermost frame whose file's path holds one of these.
PARTS = (
    ("the invariants, their ledger, the autonomy report", ("simulate/invariants/", "simulate/ledger", "simulate/autonomy")),
    ("the world: sources, wire, faults, people", ("simulate/sources/", "simulate/wire", "simulate/world", "simulate/faults", "simulate/people")),
    ("SQLite: statements, commits, rows", ("simulate/database", "simulate/statements")),
    ("SQLAlchemy: statements that are not built once, results", ("sqlalchemy/",)),
    ("the product: decide", ("flows/decide/", "flows/domain/")),
    ("the product: observe", ("flows/observe/",)),
    ("the product: state", ("flows/state/",)),
    ("the product: act, report", ("flows/act/", "flows/report/", "flows/settings", "flows/bootstrap")),
    ("the loop, its processes, the trace", ("simulate/",)),
)
REST = "Python's asyncio"


def run(sizes: tuple[tuple[int, float], ...] = SIZES) -> dict[str, Any]:
    """Processor seconds by size, and the shares of the parts in percent."""
    rows = []
    with directory() as home:
        for servers, hours in sizes:
            result = running.child(home, Order(1, servers, hours), None)
            if result.status != running.CLEAN:
                raise RuntimeError(f"{servers} servers x {hours} h: {result.violation} {result.error}")
            rows.append({"servers": servers, "hours": hours, "cpu_s": result.cpu_s, "us_per_server_minute": _each(result.cpu_s, servers, hours)})
        done = subprocess.run([sys.executable, "-m", "tests.bench.simulate", str(home), "50", "6"], capture_output=True, check=True)
    days = [row["cpu_s"] for row in rows if (row["servers"], row["hours"]) == (50, 24.0)]
    by_hours = [row["us_per_server_minute"] for row in rows if row["servers"] == 50]
    targets = {
        f"50 servers x 24 h under {LIMIT_S:g} s": all(day < LIMIT_S for day in days),
        "linear in hours": max(by_hours) <= LINEAR * by_hours[0],
        "linear in servers": rows[-1]["us_per_server_minute"] <= LINEAR * rows[0]["us_per_server_minute"],
    }
    return {"sizes": rows, "shares": json.loads(done.stdout), "targets": targets}


def _each(seconds: float, servers: int, hours: float) -> float:
    return round(seconds * 1e6 / (servers * hours * 60), 1)


def profile(home: Path, servers: int, hours: float) -> dict[str, float]:
    """Percent of the samples by part, of one simulation in this very process."""
    found: Counter[str] = Counter()

    def sample(_: int, frame: FrameType | None) -> None:
        found[_part(frame)] += 1

    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
    result = running.simulate(Order(1, servers, hours), home, None)
    signal.setitimer(signal.ITIMER_PROF, 0)
    if result.status != running.CLEAN:
        raise RuntimeError(f"{result.violation} {result.error}")
    return {part: round(100 * number / found.total(), 1) for part, number in found.most_common()}


def _part(frame: FrameType | None) -> str:
    """Of the innermost frame that is ours, SQLAlchemy's or the loop's: what Python's own modules do, they do for somebody."""
    while frame is not None:
        path = frame.f_code.co_filename
        if "/asyncio/" in path:
            return REST
        for part, names in PARTS:
            if any(name in path for name in names):
                return part
        frame = frame.f_back
    return REST


if __name__ == "__main__":
    if len(sys.argv) == 4:
        sys.stdout.write(json.dumps(profile(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
        sys.stdout.flush()
        os._exit(0)  # as flows.simulate does: the dead processes' ``finally`` must not run
    print(json.dumps(run(), indent=2))
