"""``zlh simulate``: the controllers against a simulated world in virtual time, checked after every event."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.errors import BadInput


def add_to(app: typer.Typer) -> None:
    app.command("simulate")(simulate)


def simulate(
    seed: Annotated[int, typer.Option(help="Which faults, and every latency.")] = 1,
    seeds: Annotated[str, typer.Option(help="Many seeds, FIRST..LAST, each in a process of its own.")] = "",
    servers: Annotated[int, typer.Option(min=1, max=2000, help="Servers at the beginning.")] = 12,
    hours: Annotated[float, typer.Option(min=0.05, max=10_000, help="Virtual hours; the last 95 minutes are without faults.")] = 6.0,
    profile: Annotated[str, typer.Option(help="default, dense, realistic or none.")] = "default",
    break_: Annotated[str, typer.Option("--break", help="Take one safeguard out of the product: a mutant's name, or `list`.")] = "",
    replay: Annotated[Path | None, typer.Option(help="A script instead of a seed's faults.")] = None,
    script: Annotated[Path | None, typer.Option(help="Where the shortened script of a violation goes.")] = None,
    shorten: Annotated[bool, typer.Option(help="Shorten the schedule of a violation.")] = True,
    log: Annotated[Path | None, typer.Option(help="Where every event goes, one a line.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes at once, for --seeds.")] = max(1, (os.cpu_count() or 2) - 1),
    json_: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> int:
    """Simulate the controllers in virtual time, with faults.

    Exit status: 0 clean, 1 an invariant does not hold, 2 it could not be simulated.
    """
    from flows.simulate import report, running
    from flows.simulate.mutants import MUTANTS, named
    from flows.simulate.simulation import Order

    if break_ == "list":
        for mutant in MUTANTS.values():
            typer.echo(f"{mutant.name:20} {mutant.caught_by:18} {mutant.what}")
        return 0
    if break_:
        named(break_)
    order = Order(seed, servers, hours, profile)
    if seeds:
        wanted = _range(seeds)
        return report.batch(running.many(wanted, order, mutant=break_, jobs=jobs, tell=report.progress(len(wanted))), as_json=json_)
    result = running.one(order, mutant=break_, replay=replay, shortened=shorten, keep_log=log is not None)
    if log is not None:
        log.write_text("\n".join(result.log) + "\n", encoding="utf-8")
    _keep(script, result, break_)
    report.single(result, as_json=json_)
    return result.status


def _keep(script: Path | None, result: Any, mutant: str) -> None:
    from flows.simulate import plan

    if script is not None and result.script is not None:
        broken = {"break": mutant} if mutant else {}
        plan.save(script, {**result.order, **broken}, [plan.Fault(**fault) for fault in result.script])


def _range(text: str) -> range:
    first, separator, last = text.partition("..")
    if not separator or not first.isdigit() or not last.isdigit() or int(last) < int(first):
        raise BadInput("seeds", text, why="is no range", remedy="give FIRST..LAST, like 1..30")
    return range(int(first), int(last) + 1)
