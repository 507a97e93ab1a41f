"""What a person, or a program, reads of simulations."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict

from flows.simulate.plan import Fault
from flows.simulate.running import CLEAN, ERROR, VIOLATED, Result


def single(result: Result, *, as_json: bool) -> None:
    if as_json:
        _say(json.dumps({k: v for k, v in asdict(result).items() if k != "log"}, sort_keys=True))
        return
    _say(line(result))
    for source, number in result.counts.items():
        _say(f"  {source:32} {number}")
    if result.error:
        _say(result.error)
    if result.script is not None:
        _say(f"shortened to {len(result.script)} faults in {result.replays} replays:")
        for fault in result.script:
            _say(f"  {Fault(**fault)}")
    if result.autonomy:
        _autonomy(result.autonomy)


def line(result: Result) -> str:
    order = result.order
    what = f"seed {order['seed']}, {order['servers']} servers, {order['hours']:g} h, {result.faults} faults"
    if result.error:
        return f"error: {what}: {result.error.splitlines()[0]}"
    if result.violation is not None:
        return f"violation: {result.violation['invariant']} at {result.violation['at']:.1f} s: {result.violation['what']} ({what})"
    return f"clean: {what}, {result.cpu_s:.1f} s, trace {result.trace}"


def progress(total: int) -> Callable[[Result], None]:
    """Counts on a terminal, in one line of stderr; says nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda result: None
    numbers = itertools.count(1)

    def tell(result: Result) -> None:
        number = next(numbers)
        sys.stderr.write(f"\r{number} of {total}" + ("\n" if number == total else ""))
        sys.stderr.flush()

    return tell


def batch(results: Iterable[Result], *, as_json: bool) -> int:
    """One line for each that is not clean, and a sum. Returns the exit status."""
    status, number, violated, cpu = CLEAN, 0, Counter[str](), 0.0
    seeds: dict[str, list[int]] = {}
    for result in results:
        number += 1
        cpu += result.cpu_s
        if result.status == CLEAN:
            continue
        name = result.violation["invariant"] if result.violation is not None else "error"
        violated[name] += 1
        seeds.setdefault(name, []).append(int(result.order["seed"]))
        status = max(status, result.status) if status != VIOLATED or result.status != ERROR else ERROR
        if not as_json:
            _say(line(result))
    if as_json:
        _say(json.dumps({"simulations": number, "violations": dict(violated), "seeds": seeds, "cpu_s": round(cpu, 1)}, sort_keys=True))
    else:
        clean = number - sum(violated.values())
        _say(f"{clean} of {number} clean, {cpu:.0f} s in all" + "".join(f"; {name}: {n}" for name, n in sorted(violated.items())))
    return status


def _autonomy(found: dict[str, object]) -> None:
    _say("autonomy:")
    for name, value in found.items():
        if isinstance(value, list):
            _say(f"  {name}: {len(value)}")
            for item in value:
                _say(f"    {item}")
        else:
            _say(f"  {name}: {value}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
