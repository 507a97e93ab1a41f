"""``zlh intake``: whether new orders are taken. Closed, the front door answers 503 to creations; what runs goes on."""

from __future__ import annotations

import typer

from flows.cli import output, session
from flows.state.database import Tx


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="Whether new orders are taken. What runs goes on.")
    group.callback(invoke_without_command=True)(show)
    group.command("open")(open_)
    group.command()(close)
    app.add_typer(group, name="intake")


def show(ctx: typer.Context, json: output.Json = False) -> None:
    """Whether new orders are taken. Exit 1 while they are not."""
    if ctx.invoked_subcommand is not None:
        return
    from flows.state import control

    closed = session.read(control.intake_closed)
    if json:
        output.data({"open": not closed})
    else:
        output.text("closed: zlh intake open" if closed else "open")
    raise SystemExit(int(closed))


def open_(yes: output.Yes = False, json: output.Json = False) -> None:
    """Take new orders again."""
    output.confirm("take new orders again, although a flow that closed intake may not have passed?", yes)
    _set(closed=False, json=json)


def close(yes: output.Yes = False, json: output.Json = False) -> None:
    """Refuse new orders with 503 until they are taken again."""
    output.confirm("refuse every new order?", yes)
    _set(closed=True, json=json)


def _set(*, closed: bool, json: bool) -> None:
    from flows.state import control

    who = session.actor()

    async def change(tx: Tx) -> None:
        await control.set_intake_closed(tx, closed, who)

    session.write(change)
    if json:
        output.data({"open": not closed})
    else:
        output.text("intake is " + ("closed" if closed else "open"))
