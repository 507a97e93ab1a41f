"""Commands that look: ``status``, ``explain``, ``reconcile --dry-run``, ``doctor``, ``config show``; and ``migrate``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import output, session
from flows.cli.listings import one
from flows.cli.nouns import BY_NAME
from flows.cli.orders import Server as ServerName
from flows.errors import NotFound, Unreachable

if TYPE_CHECKING:
    from flows.decide.explain import CheckVerdict, Explanation

#: Seconds between two looks of ``zlh status --watch``.
WATCH_S = 2.0


def add_to(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(explain)
    app.command()(reconcile)
    app.command()(doctor)
    app.command()(migrate)
    config = typer.Typer(help="Effective settings.", no_args_is_help=True)
    config.command("show")(config_show)
    config.command("docs")(config_docs)
    app.add_typer(config, name="config")


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="again every 2 s, until Ctrl-C")] = False,
    json: output.Json = False,
    utc: output.Utc = False,
) -> None:
    """One screen: automation, sources, fleet, findings, queues, alerts, backups, and what waits for a person.

    Exit 1 with open findings, 3 when it is not known that all is well: no recent sweep, or a source without an answer."""
    from flows.cli import status as screen

    settings = session.settings()
    patience_ms = int(settings.watchdog.intervals * settings.timing.sweep_s * 1000)
    while True:
        facts = session.read(screen.facts)
        if json:
            output.lines([output.program(facts)]) if watch else output.data(output.program(facts))
        else:
            if watch and sys.stdout.isatty():
                output.write("\x1b[2J\x1b[H")
            for line in screen.lines(facts, utc=utc, patience_ms=patience_ms):
                output.text(line)
        if not watch:
            raise SystemExit(screen.verdict(facts, patience_ms))
        sys.stdout.flush()
        time.sleep(WATCH_S)


def explain(server: ServerName, json: output.Json = False, utc: output.Utc = False) -> None:
    """From one fresh look: what each source says of a server, each check's verdict, why automation acts or does not, what comes next.

    Exit 1 with a finding, 3 where a source gave no answer and so something is not judged."""
    from flows import bootstrap
    from flows.act.policy import policy_of
    from flows.act.sweep import observe
    from flows.decide.explain import explain as explaining

    row, _ = one(BY_NAME["servers"], server)

    async def look() -> Explanation:
        settings = session.settings()
        async with bootstrap.deps(settings) as deps:
            snapshot = await observe(deps)
            if row["id"] not in snapshot.fleet.servers:
                raise NotFound(
                    f"server {row['name']}", why=f"it is {row['state']}: nothing is watched any more", remedy=f"zlh servers show {row['id']}"
                )
            return explaining(snapshot, policy_of(settings), str(row["id"]))

    said = asyncio.run(look())
    judged = [v.state for line in said.lines for v in line.verdicts]
    if json:
        output.data(output.program(asdict(said)))
    else:
        for line in explained(said, utc):
            output.text(line)
    raise SystemExit(1 if "found" in judged else 3 if "not judged" in judged else 0)


def explained(said: Explanation, utc: bool) -> Iterator[str]:
    """The lines that a person reads."""
    s = said.server
    yield f"{s.name}  ct {s.vmid} on {s.node}  {s.address}  desired {s.desired}"
    for line in said.lines:
        remarks = [remark(verdict) for verdict in line.verdicts if verdict.state != "ok"]
        beside = "← " + "; ".join(remarks) if remarks else "ok" if line.verdicts else ""
        yield f"  {line.source:<9}{line.says:<63} {beside}".rstrip()
    for title, words in (("would", said.would), ("does not", said.does_not), ("next", said.next), ("by hand", said.commands)):
        for word in words:
            yield f"{title:<9}  {word}"
    for check, at in said.next_at.items():
        yield f"{'at':<9}  {output.moment(at, utc)} ({check})"
    if not said.would:
        yield "nothing to do"


def remark(verdict: CheckVerdict) -> str:
    """A check's verdict beside what its source says."""
    if verdict.finding is None:
        return f"{verdict.check}: {verdict.state}, {verdict.detail}"
    return f"{verdict.check}, {'confirmed' if verdict.finding.confirmed else 'not confirmed yet'}"


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and do nothing")] = False,
    json: output.Json = False,
) -> None:
    """One sweep from here: look, decide, act. With --dry-run only the plan is printed, also beside the live controller.

    Exit 1 with findings or where another controller sweeps, 3 where a check could not be judged."""
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
        output.data({"outcome": outcome, "plan": None if plan is None else output.program(asdict(plan))})
    else:
        for line in said or [f"no plan: {outcome}" if plan is None else "nothing to do"]:
            output.text(line)
    raise SystemExit(1 if plan is None or plan.findings else 3 if plan.skipped else 0)


def doctor(json: output.Json = False) -> None:
    """Rights, reachability, versions and clocks of everything the controller needs. Exit 1 if something is wrong, 3 if it could not look."""
    from flows.cli.doctor import examine

    checks = asyncio.run(examine(session.settings()))
    if json:
        output.lines([asdict(check) for check in checks])
    else:
        output.table([{"": {True: "ok", False: "WRONG", None: "?"}[c.ok], "part": c.part, "says": c.says, "to do": c.remedy} for c in checks],
                     ("", "part", "says", "to do"), "nothing examined")  # fmt: skip
    raise SystemExit(1 if any(c.ok is False for c in checks) else 3 if any(c.ok is None for c in checks) else 0)


def config_show(
    sources: Annotated[bool, typer.Option("--sources", help="say where each value comes from")] = False,
    json: output.Json = False,
    wide: output.Wide = False,
) -> None:
    """Every setting with its value; secrets as ••••."""
    from pydantic import SecretStr

    from flows import environment
    from flows.settings import fields

    chosen, here = session.settings(), session.environ()
    in_file = environment.merged({"ZLH_ENV_FILE": here["ZLH_ENV_FILE"]}) if here.get("ZLH_ENV_FILE") else {}
    rows: list[Mapping[str, Any]] = []
    for variable, path, _ in fields():
        group, _, name = path.partition(".")
        value = getattr(getattr(chosen, group), name)
        shown = ("••••" if value.get_secret_value() else "") if isinstance(value, SecretStr) else value
        origin = next(
            (said for where, said in ((here, "environment"), (in_file, "env file")) if {variable, f"{variable}_FILE"} & set(where)), "default"
        )
        rows.append({"setting": variable, "value": shown, **({"from": origin} if sources else {})})
    if json:
        output.lines([{**row, "value": row["value"] if isinstance(row["value"], int | float | str) else output.plain(row["value"])} for row in rows])
    else:
        shown_rows = [{**row, "value": output.plain(row["value"])} for row in rows]
        output.table(shown_rows, ("setting", "value", "from") if sources else ("setting", "value"), "", wide=wide)


def config_docs() -> None:
    """Every setting with its default and unit, as the page docs/settings.md."""
    from flows.cli.settings_page import page

    output.write(page())


def migrate(json: output.Json = False) -> None:
    """Bring the database to this version's tables. Twice is harmless; several at once wait for each other."""
    from flows.state import migrate as migration

    url = session.settings().database.url.get_secret_value()
    try:
        before = asyncio.run(migration.current(url)) if _exists(url) else None
        asyncio.run(migration.upgrade(url))
    except OSError as error:
        why = f"{error.filename or 'its directory'}: {error.strerror or error}"
        raise Unreachable("database", why=why, remedy="check ZLH_DATABASE__URL: it names a place where this user may write") from error
    now = migration.head()
    if json:
        output.data({"from": before, "to": now})
    else:
        output.text(f"already at {now}" if before == now else f"from {before or 'nothing'} to {now}")


def _exists(url: str) -> bool:
    """An SQLite file is not made by looking for its version."""
    path = url.partition(":///")[2].partition("?")[0]
    return not url.startswith("sqlite") or Path(path).exists()
