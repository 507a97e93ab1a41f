"""``zlh validate``: M1 (database) and M3 (workers) look alone; M5 (provisioning) writes, and runs only when asked by name.

Exit 0 clean, 1 findings, 3 something could not be looked at: unknown is not clean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import output, session
from flows.domain.validation import Report, merged

if TYPE_CHECKING:
    from flows.act.post_migration import Ending
    from flows.observe.validation import Lookers
    from flows.settings import Settings

#: Seconds between two looks at a run of the engine.
LOOK_S = 2.0


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="Is the state consistent? Looks, never touches, but where a command says so.")
    group.callback(invoke_without_command=True)(everything)
    group.command()(database)
    group.command()(workers)
    group.command()(provisioning)
    group.command("post-migration")(post_migration)
    app.add_typer(group, name="validate")


def everything(ctx: typer.Context, json: output.Json = False) -> None:
    """Is the state consistent? Everything that can be looked at without touching anything: database, workers.

    Exit 1 with findings; 3 with none, where something could not be looked at."""
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


def provisioning(
    customer: Annotated[str, typer.Option(help="customer to order for; made if there is none of this name")] = "zlh-validation",
    kind: Annotated[str, typer.Option("--type", help="game or dev")] = "game",
    flavor: Annotated[str | None, typer.Option(help="what runs in it; default: fabric, and dev for --type dev")] = None,
    version: Annotated[str | None, typer.Option(help="its version; default: 1.21.4, and 1 for --type dev")] = None,
    yes: output.Yes = False,
    json: output.Json = False,
) -> None:
    """Order one server, prove that exactly one record, job, container, agent execution and alert came of it, and delete it without trace (M5).

    Exit 1 with findings; 3 with none, where something could not be looked at."""
    from flows import bootstrap
    from flows.act import trial

    settings = session.settings()
    output.confirm(f"order a server for {customer} on this live system, and delete it?", yes)
    dev = kind == "dev"
    wish = trial.Wish(customer=customer, ctype=kind, flavor=flavor or ("dev" if dev else "fabric"), version=version or ("1" if dev else "1.21.4"))

    async def run() -> Report:
        async with bootstrap.deps(settings) as deps:
            return await trial.run(deps, bootstrap.front_door(settings), wish, lambda line: None if json else output.text(line))

    finish(asyncio.run(run()), json)


def post_migration(
    here: Annotated[bool, typer.Option("--here", help="in this process instead of as a run of the engine")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="follow the run to its end")] = True,
    yes: output.Yes = False,
    json: output.Json = False,
) -> None:
    """After a migration: database, resets of Redis and the engine's runs, workers, one controlled creation; the first failure ends it (M8).

    From its begin until it passed the front door takes no order but its own. Exit 1 where it stopped; with --here
    3 where it stopped because something could not be looked at."""
    settings = session.settings()
    output.confirm("refuse every order until this passed, reset Redis, and end the engine's old runs?", yes)
    if not here:
        raise SystemExit(asyncio.run(_submitted(settings, wait, json)))

    async def run() -> Ending:
        from flows import bootstrap
        from flows.act import post_migration as migration

        async with bootstrap.post_migration(settings) as parts:
            return await migration.run(parts, lambda line: None if json else output.text(line))

    ending = asyncio.run(run())
    if json:
        output.data({"stopped_at": ending.stopped_at} | as_data(ending.report))
    else:
        for line in lines(ending.report):
            output.text(line)
        output.text("passed: orders are taken" if ending.stopped_at is None else f"stopped at {ending.stopped_at}: intake stays closed")
    raise SystemExit(status(ending.report))


async def _submitted(settings: Settings, wait: bool, json: bool) -> int:
    """The exit status. The run's log, in the engine, says everything else."""
    import uuid

    from flows.clients.engine import PrefectEngine
    from flows.domain.operation import Queue

    engine, key = PrefectEngine(settings.engine), f"post-migration:{uuid.uuid4().hex}"
    try:
        run_id = await engine.submit("post-migration", key, {}, Queue.REPAIRS)
        if not json:
            output.text(f"run {run_id}: {settings.engine.url.removesuffix('/api')}/runs/flow-run/{run_id}")
        state = "submitted"
        while wait and state not in ("completed", "failed", "crashed", "cancelled"):
            await asyncio.sleep(LOOK_S)
            found = (await engine.runs([key])).get(key)
            state = found.state if found is not None else "gone"
            if state == "gone":
                break
    finally:
        await engine.close()
    if json:
        output.data({"run": run_id, "state": state})
    else:
        output.text(f"post-migration {state}" + ("" if state in ("completed", "submitted") else ": whether orders are taken: zlh intake"))
    return 0 if state in ("completed", "submitted") else 1


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
