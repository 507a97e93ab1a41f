"""Runs simulations: one, replayed, shortened, or many seeds at once. Each simulation is a process of the machine of its own, which ends
without its dead processes' ``finally`` (``os._exit``) and gives all its memory back.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.errors import AutomationError, BadInput
from flows.simulate import mutants, plan, shorten
from flows.simulate.plan import Fault
from flows.simulate.simulation import Order, Simulation, directory

CLEAN, VIOLATED, ERROR = 0, 1, 2


@dataclass
class Result:
    """Of one simulation. ``violation`` None: clean. ``error``: the simulator, or the product, broke."""

    order: dict[str, Any]
    trace: str = ""
    cpu_s: float = 0.0
    faults: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    violation: dict[str, Any] | None = None
    others: list[str] = field(default_factory=list)
    error: str = ""
    script: list[dict[str, Any]] | None = None
    replays: int = 0
    autonomy: dict[str, Any] | None = None
    log: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        return ERROR if self.error else VIOLATED if self.violation is not None else CLEAN


def simulate(order: Order, home: Path, faults: Sequence[Fault] | None, mutant: str = "", *, keep_log: bool = False) -> Result:
    """One simulation in this very process, which must do nothing else afterwards."""
    from flows.simulate.invariants.base import Violation

    chosen = mutants.named(mutant) if mutant else None
    result = Result(asdict(order))
    with mutants.broken(chosen):
        simulation = Simulation(order, home, faults)
        simulation.stop_at = chosen.caught_by if chosen is not None else None
        simulation.log = [] if keep_log else None
        if keep_log:
            simulation.controllers.said = lambda process, line: simulation.say(f"{process}: {line}")
            simulation.people.said = lambda line: simulation.say(f"person: {line}")
        try:
            report = simulation.run()
            result.cpu_s = round(report.cpu_s, 2)
            if chosen is None:
                result.autonomy = simulation.autonomy()
        except Violation as violation:
            result.violation = {"invariant": violation.name, "at": round(violation.at, 3), "what": violation.what}
        except Exception as error:  # noqa: BLE001 - a process boundary: whatever it is, it is reported with its seed
            import traceback

            result.error = f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error)[-12:])}"
    result.trace, result.faults, result.counts = simulation.trace.hexdigest(), simulation.faults.injected, dict(sorted(simulation.counts.items()))
    result.others = sorted({v.name for v in simulation.violations} - {(result.violation or {}).get("invariant", "")})
    result.log = simulation.log or []
    return result


def child(home: Path, order: Order, faults: Sequence[Fault] | None, mutant: str = "", *, keep_log: bool = False) -> Result:
    """:func:`simulate` in a process of its own."""
    given = {"order": asdict(order), "faults": None if faults is None else [asdict(f) for f in faults], "mutant": mutant, "log": keep_log}
    done = subprocess.run(  # noqa: S603 - our own interpreter with our own arguments
        [sys.executable, "-m", "flows.simulate", str(home)], input=json.dumps(given).encode(), capture_output=True, check=False
    )  # fmt: skip
    try:
        return Result(**json.loads(done.stdout))
    except (ValueError, TypeError):
        tail = done.stderr.decode(errors="replace")[-3000:]
        return Result(asdict(order), error=f"the simulation ended with status {done.returncode}\n{tail}")


def main(home: str) -> None:
    """What ``python -m flows.simulate`` does: an order on stdin, its result on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    given = json.loads(sys.stdin.read())
    gc.collect()
    gc.freeze()  # what was imported lives as long as the process, and is looked through no more
    gc.set_threshold(50_000, 20, 50)
    faults = None if given["faults"] is None else [Fault(**f) for f in given["faults"]]
    result = simulate(Order(**given["order"]), Path(home), faults, given["mutant"], keep_log=given["log"])
    sys.stdout.write(json.dumps(asdict(result)))
    sys.stdout.flush()
    os._exit(0)


def one(order: Order, *, mutant: str = "", replay: Path | None = None, shortened: bool = True, keep_log: bool = False) -> Result:
    """A seed, or a script; a violation is shortened to a script of its own."""
    faults: list[Fault] | None = None
    if replay is not None:
        given, faults = plan.load(replay)
        mutant = mutant or str(given.pop("break", ""))
        order = _ordered(given)
    with directory() as home:
        return _one(home, order, faults, mutant, shortened=shortened, keep_log=keep_log)


def _ordered(given: dict[str, Any]) -> Order:
    try:
        return Order(**given)
    except TypeError as error:
        raise BadInput("replay", given, why=str(error), remedy="give a script that this version wrote") from error


def _one(home: Path, order: Order, faults: list[Fault] | None, mutant: str, *, shortened: bool, keep_log: bool) -> Result:
    result = child(home, order, faults, mutant, keep_log=keep_log)
    if result.violation is None or not shortened:
        return result
    everything = faults if faults is not None else plan.planned(order.seed, order.servers, order.hours, order.profile)
    at, name = float(result.violation["at"]), result.violation["invariant"]
    short = replace(order, hours=round(min(order.hours, (at + shorten.BEYOND_S) / 3600), 4))
    if at >= order.hours * 3600:  # judged at the end
        short = order

    def fails(candidate: Sequence[Fault]) -> bool:
        again = child(home, short, candidate, mutant)
        return again.violation is not None and again.violation["invariant"] == name

    done = shorten.shorten(everything, at, fails)
    result.script, result.replays = [asdict(f) for f in done.faults], done.replays
    result.order = asdict(short)
    return result


def many(
    seeds: Iterable[int], order: Order, *, mutant: str = "", jobs: int = 1, tell: Callable[[Result], None] = lambda result: None
) -> Iterator[Result]:
    """Many seeds, ``jobs`` at once, in order."""
    with directory() as home, ThreadPoolExecutor(jobs) as pool:
        for result in pool.map(lambda seed: child(home, replace(order, seed=seed), None, mutant), seeds):
            tell(result)
            yield result


def catches(mutant: str, seeds: Iterable[int], order: Order, *, jobs: int = 1) -> int | None:
    """The first seed that catches a mutant by its own invariant; None: none does."""
    with directory() as home, ThreadPoolExecutor(jobs) as pool:
        found = pool.map if jobs > 1 else map  # one after the other, no more are begun than needed
        for result in found(lambda seed: child(home, replace(order, seed=seed), None, mutant), seeds):
            if result.error:
                raise AutomationError(f"mutant {mutant}", why=result.error)
            if result.violation is not None:
                return int(result.order["seed"])
    return None
