"""Brakes and maintenance: ``pause``, ``resume``, ``maintenance on|off``, ``repair-level``."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from flows import bootstrap
from flows.cli import evidence, output, session
from flows.cli.listings import complete_host, complete_server, one
from flows.cli.nouns import BY_NAME
from flows.cli.orders import Server as ServerName
from flows.domain.event import Event, EventKind
from flows.domain.finding import BrakeRow, BrakeScope
from flows.domain.lease import Lease, LeaseKind
from flows.errors import BadInput, Busy, Conflict
from flows.state import audit, brakes, control, leases, maintenance, outbox
from flows.state.database import Tx

Server = Annotated[str | None, typer.Option("--server", help="only this server", autocompletion=complete_server)]
Host = Annotated[str | None, typer.Option("--host", help="only this host", autocompletion=complete_host)]
All = Annotated[bool, typer.Option("--all", help="everything")]


def add_to(app: typer.Typer) -> None:
    app.command()(pause)
    app.command()(resume)
    group = typer.Typer(help="Keep automation and orders off a server while you work on it.", no_args_is_help=True)
    group.command("on")(on)
    group.command("off")(off)
    app.add_typer(group, name="maintenance")
    level = typer.Typer(help="Up to which level automation repairs: 0 nothing, 1 what is safe, 2 restarts, 3 what was approved.")
    level.callback(invoke_without_command=True)(level_show)
    level.command("set")(level_set)
    app.add_typer(level, name="repair-level")


def _target(server: str | None, host: str | None, everything: bool) -> tuple[BrakeScope, str, str]:
    """Scope, target and what to call it. Raises BadInput, or NotFound: a pause of what does not exist would stop nothing."""
    if sum((server is not None, host is not None, everything)) != 1:
        raise BadInput("--server, --host, --all", "none or several", why="exactly one is needed", remedy="for example zlh pause --all")
    if server is not None:
        found, _ = one(BY_NAME["servers"], server)
        return BrakeScope.SERVER, str(found["id"]), str(found["name"])
    if host is not None:
        found, _ = one(BY_NAME["hosts"], host)
        return BrakeScope.HOST, str(found["name"]), str(found["name"])
    return BrakeScope.ALL, "", "everything"


def pause(
    server: Server = None,
    host: Host = None,
    everything: All = False,
    until: Annotated[str | None, typer.Option("--until", help="how long: 30m, 2h; default: until resumed")] = None,
    reason: Annotated[str, typer.Option(help="why; shown everywhere")] = "",
    yes: output.Yes = False,
    json: output.Json = False,
) -> None:
    """Stop all automation, of everything, a host or a server. It still looks, and says so every day."""
    scope, target, name = _target(server, host, everything)
    lasts = None if until is None else int(output.seconds(until, "--until") * 1000)
    output.confirm(f"stop automation of {name}?", yes)
    who, undo = session.actor(), "zlh resume --all" if scope is BrakeScope.ALL else f"zlh resume --{scope.value} {name}"

    async def change(tx: Tx) -> BrakeRow:
        end = None if lasts is None else tx.now + lasts
        row = await brakes.pause(tx, scope, target, reason or "no reason given", who, end)
        until_ = f"until {output.iso(end)}" if end else "until resumed"
        await _tell(
            tx, Event(EventKind.AUTOMATION_PAUSED, f"paused/{row.id}", f"{who} paused automation: {row.reason}", name, next=until_, command=undo)
        )
        return row

    row = session.write(change)
    if json:
        output.data(output.program(asdict(row)))
    else:
        output.text(f"paused {name}" + (f" until {output.moment(row.until)}" if row.until else "") + f"; end it: {undo}")


def resume(server: Server = None, host: Host = None, everything: All = False, yes: output.Yes = False, json: output.Json = False) -> None:
    """Let automation act again."""
    scope, target, name = _target(server, host, everything)
    output.confirm(f"let automation act on {name} again?", yes)
    who = session.actor()

    async def change(tx: Tx) -> list[BrakeRow]:
        lifted = await brakes.resume(tx, scope, target, who)
        if not lifted:
            raise Conflict("nothing resumed", why=f"{name} is not paused", remedy="zlh status shows what is")
        for row in lifted:
            what = f"{who} resumed automation"
            await _tell(tx, Event(EventKind.AUTOMATION_RESUMED, f"resumed/{row.id}", what, name, over_of=EventKind.AUTOMATION_PAUSED))
        return lifted

    lifted = session.write(change)
    output.lines([output.program(asdict(row)) for row in lifted]) if json else output.text(f"resumed {name}")


async def _tell(tx: Tx, event: Event) -> None:
    await outbox.put(tx, event, bootstrap.router(session.settings())(event, tx.now))


def level_show(ctx: typer.Context, json: output.Json = False) -> None:
    """Up to which level automation repairs: 0 nothing, 1 what is safe, 2 restarts, 3 what was approved."""
    if ctx.invoked_subcommand is not None:
        return
    level = session.read(control.repair_level)
    output.data({"level": level}) if json else output.text(f"levels 0–{level}")


def level_set(level: Annotated[int, typer.Argument(min=0, max=3)], yes: output.Yes = False, json: output.Json = False) -> None:
    """Set it. Lower it at any time; raise it when you trust what it adds: what that would have done in the last 30 days is shown first."""
    facts = evidence.of(session.read(control.repair_level), level)
    if not json:
        for line in evidence.lines(facts):
            output.remark(line)
    output.confirm(f"repair up to level {level}?", yes)
    who = session.actor()
    session.write(lambda tx: control.set_repair_level(tx, level, who))
    output.data({"level": level, "evidence": facts}) if json else output.text(f"levels 0–{level}")


def on(
    server: ServerName,
    duration: Annotated[str, typer.Option("--for", help="how long; it ends by itself")] = "4h",
    reason: Annotated[str, typer.Option(help="why; shown everywhere")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="wait for an operation that holds the server")] = False,
    yes: output.Yes = False,
    json: output.Json = False,
) -> None:
    """Take a server for yourself: no repair and no order touches it; again extends it."""
    found, _ = one(BY_NAME["servers"], server)
    name, server_id = str(found["name"]), str(found["id"])
    who, ttl = session.actor(), int(output.seconds(duration, "--for") * 1000)
    output.confirm(f"keep automation and orders off {name} for {output.duration(ttl)}?", yes)

    async def change(tx: Tx) -> Lease:
        return await maintenance.take(tx, server_id, who, ttl, reason)

    said = False
    while True:
        try:
            lease = session.write(change)
            break
        except Busy as error:
            if not wait:
                raise
            if not said:
                output.remark(f"zlh: {error} · waiting")
                said = True
            time.sleep(1.0)
    if json:
        output.data(output.program(asdict(lease)))
    else:
        output.text(f"{name} is yours until {output.moment(lease.expires_at)}; give it back: zlh maintenance off {name}")


def off(server: ServerName, yes: output.Yes = False, json: output.Json = False) -> None:
    """Give a server back to automation."""
    found, _ = one(BY_NAME["servers"], server)
    name, server_id, who = str(found["name"]), str(found["id"]), session.actor()
    output.confirm(f"let automation and orders act on {name} again?", yes)

    async def change(tx: Tx) -> Lease:
        lease = await leases.get(tx, server_id)
        if lease is None or lease.kind is not LeaseKind.MAINTENANCE or lease.holder is None:
            raise Conflict(f"maintenance of {name}", why="it is not in maintenance", remedy="zlh leases")
        await leases.release(tx, server_id, lease.token)
        await audit.append(tx, who, "maintenance.off", f"server:{server_id}", server_id=server_id, detail={"held_by": lease.holder})
        return lease

    lease = session.write(change)
    output.data(output.program(asdict(lease))) if json else output.text(f"{name} is automation's again")
