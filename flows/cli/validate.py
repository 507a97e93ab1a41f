"""``zlh validate``: M1 (database) and M3 (workers), read only. Exit 0 clean, 1 findings, 3 something could not be looked at: unknown is not clean."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from flows.cli import output, session
from flows.domain.validation import Report, merged

if TYPE_CHECKING:
    from flows.observe.validation import Lookers


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="Is the state consistent? Looks, never touches, but where a command says so.")
    group.callback(invoke_without_command=True)(everything)
    group.command()(database)
    group.command()(workers)
    app.add_typer(group, name="validate")


def everything(ctx: typer.Context, json: output.Json = False) -> None:
    """Is the state consistent? Everything that can be looked at without touching anything: database, workers.

    Exit 1 with findings, 3 where something could not be looked at."""
    if ctx.invoked_subcommand is None:
        from flows.observe import validation

        _look([validation.database, validation.workers], json)


def database(json: output.Json = False) -> None:
    """The database, and the containers at Proxmox: duplicates, contradictions, states and leases that are older than they may be (M1)."""
    from flows.observe import validation

    _look([validation.database], json)


def workers(json: output.Json = False) -> None:
    """Which machines run controllers, workers and queue consumers, against ZLH_TOPOLOGY__HOSTS and ZLH_TOPOLOGY__WORKERS (M3)."""
    from flows.observe import validation

    _look([validation.workers], json)


def _look(parts: list[Callable[[Lookers], Awaitable[Report]]], json: bool) -> None:
    async def run() -> Report:
        from flows import bootstrap

        async with bootstrap.lookers(session.settings()) as look:
            return merged([await part(look) for part in parts])

    finish(asyncio.run(run()), json)


def finish(report: Report, json: bool) -> None:
    """Prints it, and ends with the exit status that it means."""
    if json:
        output.data(as_data(report))
    else:
        for line in lines(report):
            output.text(line)
    raise SystemExit(status(report))


def status(report: Report) -> int:
    """The exit status that it means."""
    return 1 if report.problems else 3 if report.unlooked else 0


def as_data(report: Report) -> dict[str, Any]:
    """What a program reads."""
    found, unlooked = [asdict(p) for p in report.problems], [asdict(u) for u in report.unlooked]
    return {"clean": report.clean, "findings": found, "unlooked": unlooked, "looked": list(report.looked)}


def lines(report: Report) -> list[str]:
    """What a person reads."""
    said = [f"looked at: {'; '.join(report.looked)}"] if report.looked else []
    for p in report.problems:
        said += [f"{p.rule}  {p.says}", f"    rows     {', '.join(p.objects)}", f"    to mend  {p.remedy}"]
    for u in report.unlooked:
        said += [f"not looked at: {u.what}", f"    why      {u.why}", *([f"    do       {u.remedy}"] if u.remedy else [])]
    count = f"{len(report.problems)} finding{'' if len(report.problems) == 1 else 's'}"
    said.append("clean" if report.clean else count + (f", {len(report.unlooked)} not looked at" if report.unlooked else ""))
    return said
