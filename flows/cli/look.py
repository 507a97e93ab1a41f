"""Commands that look and never touch: ``status``, ``explain``, ``reconcile --dry-run``, ``doctor``, ``config show``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from flows.cli import output, session
from flows.errors import NotFound


def add_to(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(explain)
    app.command()(reconcile)
    app.command()(doctor)
    config = typer.Typer(help="Effective settings.", no_args_is_help=True)
    config.command("show")(config_show)
    app.add_typer(config, name="config")


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="again every 2 s")] = False,
    json: output.Json = False,
) -> None:
    """One screen: automation, sources, fleet, findings, queues, outbox, backups, what waits for a person. Exit 1 with open findings."""
    from flows.cli import status as screen

    while True:
        facts = session.read(screen.facts)
        if json:
            output.data(facts)
        else:
            if watch:
                output.text("\x1b[2J\x1b[H")
            for line in screen.lines(facts):
                output.text(line)
        if not watch:
            raise SystemExit(1 if facts["findings"] else 0)
        time.sleep(2.0)


def explain(server: str, json: output.Json = False) -> None:
    """From one fresh look: what each source says of a server, each check's verdict, why automation acts or does not, what comes next."""
    from flows import bootstrap
    from flows.act.policy import policy_of
    from flows.act.sweep import observe
    from flows.decide.explain import Explanation
    from flows.decide.explain import explain as explaining

    async def look() -> Explanation:
        settings = session.settings()
        async with bootstrap.deps(settings) as deps:
            snapshot = await observe(deps)
            found = next((s for s in snapshot.fleet.servers.values() if server in (s.name, s.id)), None)
            if found is None:
                raise NotFound(f"server {server}", why="there is none", remedy="zlh servers")
            return explaining(snapshot, policy_of(settings), found.id)

    said = asyncio.run(look())
    if json:
        output.data(asdict(said))
        return
    s = said.server
    output.text(f"{s.name}  ct {s.vmid} on {s.node}  {s.address}  desired {s.desired}")
    for line in said.lines:
        remarks = [f"{v.check}{'' if v.state == 'found' else ' ' + v.state}" for v in line.verdicts if v.state != "ok"]
        output.text(f"  {line.source:<9}{line.says:<64}{'← ' + ', '.join(remarks) if remarks else ''}".rstrip())
    for title, words in (("would", said.would), ("does not", said.does_not), ("next", said.next), ("by hand", said.commands)):
        for word in words:
            output.text(f"{title:<9}  {word}")
    if not said.would:
        output.text("nothing to do")


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and do nothing")] = False,
    json: output.Json = False,
) -> None:
    """One sweep from here: look, decide, act. With --dry-run only the plan is printed, also beside the live controller."""
    from flows import bootstrap
    from flows.act.policy import policy_of
    from flows.act.sweep import observe, sweep
    from flows.decide import announce
    from flows.decide import plan as deciding
    from flows.domain.finding import Plan

    async def run() -> tuple[str, Plan | None]:
        settings = session.settings()
        async with bootstrap.deps(settings) as deps:
            if dry_run:
                return "dry run", deciding.decide(await observe(deps), policy_of(settings))
            result = await sweep(deps, bootstrap.gate(settings), lambda line: None)
            return result.outcome, result.plan

    outcome, plan = asyncio.run(run())
    said = list(announce.lines(plan)) if plan is not None else []
    if json:
        output.data({"outcome": outcome, "plan": None if plan is None else asdict(plan)})
    else:
        for line in said or ["nothing to do"]:
            output.text(line)
    raise SystemExit(1 if plan is not None and plan.findings else 0)


def doctor(json: output.Json = False) -> None:
    """Rights, reachability, versions and clocks of everything the controller needs. Exit 1 if something is wrong, 3 if it could not look."""
    from flows.cli.doctor import examine

    checks = asyncio.run(examine(session.settings()))
    if json:
        output.data([asdict(check) for check in checks])
    else:
        output.table([{"": {True: "ok", False: "WRONG", None: "?"}[c.ok], "part": c.part, "says": c.says, "to do": c.remedy} for c in checks],
                     ("", "part", "says", "to do"), "nothing examined")  # fmt: skip
    raise SystemExit(1 if any(c.ok is False for c in checks) else 3 if any(c.ok is None for c in checks) else 0)


def config_show(
    sources: Annotated[bool, typer.Option("--sources", help="say where each value comes from")] = False,
    json: output.Json = False,
) -> None:
    """Every setting with its value; secrets as ••••."""
    import os

    from pydantic import SecretStr

    from flows.settings import fields

    chosen = session.settings()
    rows: list[Mapping[str, Any]] = []
    for variable, path, field in fields():
        group, _, name = path.partition(".")
        value = getattr(getattr(chosen, group), name)
        secret = isinstance(value, SecretStr)
        shown = ("••••" if value.get_secret_value() else "") if secret else value
        origin = "default" if value == field.default else "env file"
        if variable in os.environ or f"{variable}_FILE" in os.environ:
            origin = "environment"
        rows.append({"setting": variable, "value": shown, **({"from": origin} if sources else {})})
    if json:
        output.lines(rows)
    else:
        output.table(rows, ("setting", "value", "from") if sources else ("setting", "value"), "")
