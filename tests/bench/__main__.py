"""``make bench``: every measurement, as JSON on stdout and as the tables of ``docs/benchmarks.md``.

``python -m tests.bench [sweep] [decide] [front_door] [simulate]`` runs some of them and leaves the page alone. Exit 1 if a target is not met.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import decide, front_door, simulate, sweep

BENCHES: dict[str, Callable[[], dict[str, Any]]] = {"sweep": sweep.run, "decide": decide.run, "front_door": front_door.run, "simulate": simulate.run}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
HOW = "Samples of the running stack; a part is that of the innermost frame which is ours, SQLAlchemy's or the loop's."
#: From here to its end the page is not ours: what takes longer than a benchmark may is written by whoever ran it.
KEPT = "\n## A month of life"


def main() -> int:
    chosen = sys.argv[1:] or list(BENCHES)
    results = {}
    for name in chosen:
        sys.stderr.write(f"{name} …\n")
        results[name] = BENCHES[name]()
    sys.stdout.write(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
    if chosen == list(BENCHES):
        PAGE.write_text(page(results) + kept(PAGE.read_text()))
    return 0 if all(_ok(result) for result in results.values()) else 1


def machine() -> dict[str, Any]:
    """What it was measured on, and how busy that was."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load": [round(x, 1) for x in os.getloadavg()],
    }


def page(results: dict[str, Any]) -> str:
    """The page in docs. Ratios are of one run; absolute figures are this machine's."""
    m = machine()
    parts = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Compare ratios: they are taken in one run against a named peer. Absolute figures are one machine's.",
        "",
        f"{m['cores']} cores, Python {m['python']}, load {m['load'][0]} at the end of the run.",
        "",
        "## Asking the agents: one sweep's probes",
        "",
        sweep_table(results["sweep"]),
        "",
        "## Deciding, 5 % drift",
        "",
        decide_table(results["decide"]),
        "",
        "## The front door, SQLite with full durability",
        "",
        front_door_table(results["front_door"]),
        "",
        simulate_section(results["simulate"]),
    ]
    return "\n".join(parts) + "\n"


def kept(before: str) -> str:
    """The part of the page that is kept as it is."""
    return "".join(before.partition(KEPT)[1:])


def _ok(result: dict[str, Any]) -> bool:
    return all(result["targets"].values()) if "ok" not in result else bool(result["ok"])


def _met(ok: bool) -> str:
    return "Targets met." if ok else "**Targets not met in this run.**"


def sweep_table(result: dict[str, Any]) -> str:
    rows = [
        "| scheme | servers | ours | bare sockets | Node.js fetch | time against bare | rate against Node | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scheme in ("http", "https"):
        for r in result[scheme]:
            node = f"{r['node']['per_s']}/s | {r['times_bare']}× | {r['times_node']}×" if "node" in r else f"not installed | {r['times_bare']}× | "
            rows.append(f"| {scheme} | {r['servers']} | {r['ours']['per_s']}/s | {r['bare']['per_s']}/s | {node} | {r['ours']['peak_mb']} MB |")
    return "\n".join(
        [*rows, "", "Targets: " + ", ".join(f"{k.replace('_', ' ')}: {'met' if v else '**not met**'}" for k, v in result["targets"].items())]
    )


def decide_table(result: dict[str, Any]) -> str:
    rows = ["| servers | findings | wall | processor | per server |", "|---|---|---|---|---|"]
    for size, r in result["sizes"].items():
        rows.append(f"| {size} | {r['findings']} | {r['wall_ms']} ms | {r['cpu_ms']} ms | {r['cpu_us_per_server']} µs |")
    return "\n".join([*rows, "", f"Target: {result['target_ms']} ms of wall time at the largest. {_met(result['ok'])}"])


def front_door_table(result: dict[str, Any]) -> str:
    ours, peer = result["ours"], result["peer"]
    rows = ["| | median | p99 | closed loop |", "|---|---|---|---|"]
    offered = f"ours, {result['rate_offered']}/s offered"
    rows.append(f"| {offered} | {ours['open']['median_ms']} ms | {ours['open']['p99_ms']} ms | {ours['closed']['per_second']}/s |")
    if "open" in peer:
        rows.append(f"| {peer['name']} | {peer['open']['median_ms']} ms | {peer['open']['p99_ms']} ms | {peer['closed']['per_second']}/s |")
    return "\n".join([*rows, "", f"Targets: 20 ms at the median, 100 ms at p99. {_met(result['ok'])}"])


def simulate_section(result: dict[str, Any]) -> str:
    rows = ["## Simulating: `zlh simulate`", "", "| servers | hours | processor | per server and minute |", "|---|---|---|---|"]
    rows += [f"| {r['servers']} | {r['hours']:g} | {r['cpu_s']} s | {r['us_per_server_minute']} µs |" for r in result["sizes"]]
    met = ", ".join(f"{k}: {'met' if v else '**not met**'}" for k, v in result["targets"].items())
    rows += ["", f"Targets: {met}", "", "## Where the simulator's time goes", "", HOW, "", "| part | share of 50 servers x 6 h |", "|---|---|"]
    rows += [f"| {part} | {share} % |" for part, share in result["shares"].items()]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
