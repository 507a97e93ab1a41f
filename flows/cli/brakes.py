"""Brakes and maintenance: ``pause``, ``resume``, ``maintenance on|off``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from flows import bootstrap
from flows.cli import output, session
from flows.decide import routing
from flows.domain.event import Event, EventKind
from flows.domain.finding import BrakeScope
from flows.domain.lease import LeaseKind
from flows.errors import BadInput, Busy, Conflict, NotFound
from flows.state import audit, brakes, leases, outbox, servers
from flows.state.database import Tx

Server = Annotated[str | None, typer.Option("--server", help="only this server")]
Host = Annotated[str | None, typer.Option("--host", help="only this host")]
All = Annotated[bool, typer.Option("--all", help="everything")]


def add_to(app: typer.Typer) -> None:
    app.command()(pause)
    app.command()(resume)
    group = typer.Typer(help="Keep automation and orders off a server while you work on it.", no_args_is_help=True)
    group.command("on")(on)
    group.command("off")(off)
    app.add_typer(group, name="maintenance")


async def _target(tx: Tx, server: str | None, host: str | None, everything: bool) -> tuple[BrakeScope, str]:
    if sum((server is not None, host is not None, everything)) != 1:
        raise BadInput("--server, --host, --all", "none or several", why="exactly one is needed", remedy="for example zlh pause --all")
    if server is not None:
        found = await servers.by_name(tx, server) or await servers.get(tx, server)
        if found is None:
            raise NotFound(f"server {server}", why="there is none", remedy="zlh servers")
        return BrakeScope.SERVER, found.id
    return (BrakeScope.HOST, host) if host is not None else (BrakeScope.ALL, "")


def pause(
    server: Server = None,
    host: Host = None,
    everything: All = False,
    until: Annotated[str | None, typer.Option("--until", help="how long: 30m, 2h; default: until resumed")] = None,
    reason: Annotated[str, typer.Option(help="why; shown everywhere")] = "",
    yes: output.Yes = False,
) -> None:
    """Stop all automation, of everything, a host or a server. It still looks, and says so every day."""
    output.confirm("stop automation?", yes)
    who = session.actor()

    async def change(tx: Tx) -> str:
        scope, target = await _target(tx, server, host, everything)
        end = tx.now + int(output.seconds(until, "--until") * 1000) if until else None
        row = await brakes.pause(tx, scope, target, reason or "no reason given", who, end)
        await _tell(tx, EventKind.AUTOMATION_PAUSED, row.id, f"automation paused: {server or host or 'everything'}", reason, "zlh resume --all")
        return f"paused {server or host or 'everything'}" + (f" until {output.moment(end)}" if end else "; resume it with zlh resume")

    output.text(session.write(change))


def resume(server: Server = None, host: Host = None, everything: All = False, yes: output.Yes = False) -> None:
    """Let automation act again."""
    output.confirm("let automation act again?", yes)
    who = session.actor()

    async def change(tx: Tx) -> str:
        scope, target = await _target(tx, server, host, everything)
        lifted = await brakes.resume(tx, scope, target, who)
        if not lifted:
            raise Conflict("nothing resumed", why=f"{server or host or 'everything'} is not paused", remedy="zlh status shows what is")
        await _tell(tx, EventKind.AUTOMATION_RESUMED, lifted[0].id, f"automation resumed: {server or host or 'everything'}", "", "zlh status")
        return f"resumed {server or host or 'everything'}"

    output.text(session.write(change))


async def _tell(tx: Tx, kind: EventKind, key: str, what: str, done: str, command: str) -> None:
    event = Event(kind, key=f"{kind}/{key}", what=what, done=done, command=command)
    await outbox.put(tx, event, routing.route(event, bootstrap.router(session.settings()), tx.now))


def on(
    server: str,
    duration: Annotated[str, typer.Option("--for", help="how long; it ends by itself")] = "4h",
    reason: Annotated[str, typer.Option(help="why; shown everywhere")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="wait for an operation that holds the server")] = False,
) -> None:
    """Take a server for yourself: no repair and no order touches it; again extends it."""
    who, ttl = session.actor(), int(output.seconds(duration, "--for") * 1000)

    async def change(tx: Tx) -> str:
        found = await servers.by_name(tx, server)
        if found is None:
            raise NotFound(f"server {server}", why="there is none", remedy="zlh servers")
        held = await leases.get(tx, found.id)
        if held is not None and held.kind is LeaseKind.MAINTENANCE and held.holder == who and not held.expired(tx.now):
            lease = await leases.renew(tx, found.id, held.token, ttl)
        else:
            lease = await leases.take(tx, found.id, LeaseKind.MAINTENANCE, who, ttl, reason=reason)
        await audit.append(tx, who, "maintenance.on", f"server:{found.id}", server_id=found.id, detail={"reason": reason, "until": lease.expires_at})
        return f"{server} is yours until {output.moment(lease.expires_at)}; give it back with zlh maintenance off {server}"

    while True:
        try:
            output.text(session.write(change))
            return
        except Busy:
            if not wait:
                raise
            time.sleep(1.0)


def off(server: str) -> None:
    """Give a server back to automation."""
    who = session.actor()

    async def change(tx: Tx) -> str:
        found = await servers.by_name(tx, server)
        lease = await leases.get(tx, found.id) if found is not None else None
        if found is None or lease is None or lease.kind is not LeaseKind.MAINTENANCE or lease.holder is None:
            raise Conflict(f"maintenance of {server}", why="it is not in maintenance", remedy="zlh leases")
        await leases.release(tx, found.id, lease.token)
        await audit.append(tx, who, "maintenance.off", f"server:{found.id}", server_id=found.id, detail={"held_by": lease.holder})
        return f"{server} is automation's again"

    output.text(session.write(change))
