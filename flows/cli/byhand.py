"""Commands that this version cannot carry out, and that alerts name all the same: they say how a person does it, and exit with 1."""

from __future__ import annotations

import typer

from flows.cli import output
from flows.cli.listings import one
from flows.cli.nouns import BY_NAME
from flows.cli.orders import Server
from flows.errors import Conflict


def add_to(app: typer.Typer) -> None:
    app.command()(backup)
    app.command()(restore)


def backup(server: Server, json: output.Json = False) -> None:
    """How to copy a server by hand. This version makes and records no backups."""
    _refuse(server, json, "back up", "vzdump {vmid} --mode snapshot --compress zstd")


def restore(server: Server, json: output.Json = False) -> None:
    """How to restore a server by hand. This version restores nothing."""
    # Without a storage Proxmox takes ``local``, which holds no containers; and a restored container is stopped.
    _refuse(server, json, "restore", "pct restore {vmid} ARCHIVE --storage {storage} --force", "zlh start {name}")


def _refuse(server: str, json: bool, what: str, command: str, *then: str) -> None:
    row, _ = one(BY_NAME["servers"], server)
    told = row | {"storage": one(BY_NAME["hosts"], str(row["node"]))[0]["storage"]}
    steps = [f"zlh maintenance on {row['name']}", f"on {row['node']}: {command.format(**told)}", f"zlh maintenance off {row['name']}"]
    steps += [step.format(**told) for step in then]
    if json:
        output.data({"server": row["name"], "done": False, "by_hand": steps})
        raise SystemExit(1)
    raise Conflict(f"{what} of {row['name']}", why="not in this version", remedy="; ".join(steps))
