"""Commands that this version cannot carry out, and that alerts name all the same: they say how a person does it, and exit with 1."""

from __future__ import annotations

import typer

from flows.cli.listings import one
from flows.cli.nouns import BY_NAME
from flows.cli.orders import Server
from flows.errors import Conflict


def add_to(app: typer.Typer) -> None:
    app.command("restart-agent")(restart_agent)
    app.command()(backup)
    app.command()(restore)


def restart_agent(server: Server) -> None:
    """How to restart an agent by hand. This version has no repair of level 2."""
    raise _refusal(server, "restart the agent", "pct exec {vmid} -- systemctl restart zlh-agent")


def backup(server: Server) -> None:
    """How to copy a server by hand. This version makes and records no backups."""
    raise _refusal(server, "back up", "vzdump {vmid} --mode snapshot --compress zstd")


def restore(server: Server) -> None:
    """How to restore a server by hand. This version restores nothing."""
    raise _refusal(server, "restore", "pct restore {vmid} ARCHIVE --force")


def _refusal(server: str, what: str, command: str) -> Conflict:
    row, _ = one(BY_NAME["servers"], server)
    return Conflict(
        f"{what} of {row['name']}",
        why="not in this version",
        remedy=f"zlh maintenance on {row['name']}; on {row['node']}: {command.format(**row)}; zlh maintenance off {row['name']}",
    )
