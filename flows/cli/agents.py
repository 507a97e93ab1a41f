"""``zlh agents unfence``: the way back where an agent remembers a higher lease token than the database can give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from flows.cli import output, session
from flows.cli.listings import one
from flows.cli.nouns import BY_NAME
from flows.cli.orders import Server
from flows.errors import AutomationError, Conflict
from flows.state.database import Tx

#: Where an agent keeps what it has seen: a contract with ``agent/zlh_agent``.
FORGET = "rm -f -- /var/lib/zlh-agent/lease /var/lib/zlh-agent/epoch"


def add_to(app: typer.Typer) -> None:
    agents = typer.Typer(help="The agents in the containers.", no_args_is_help=True)
    agents.command()(unfence)
    app.add_typer(agents, name="agents")


def unfence(server: Server, json: output.Json = False) -> None:
    """Let a server's agent forget the highest lease token and epoch that it has seen, over SSH. For a database whose clock was set back."""
    import asyncio

    from flows.clients import ssh
    from flows.state import audit, host_keys

    row, _ = one(BY_NAME["servers"], server, final=True)
    who, server_id = session.actor(), str(row["id"])

    async def intent(tx: Tx) -> Mapping[str, Any]:
        keys = await host_keys.list_(tx)
        mine = [key for key in keys if key.server_id == server_id]
        if not mine:
            raise Conflict(f"agent of {row['name']}", why="its container was never trusted", remedy=f"zlh explain {row['name']}")
        await audit.append(tx, who, "agent.unfence", f"server:{server_id}", server_id=server_id)
        return {"address": mine[0].address, "keys": {key.key_type: key.public_key for key in mine}}

    known = session.write(intent)
    try:
        asyncio.run(ssh.command(known["address"], FORGET, key=session.settings().ansible.private_key, host_keys=known["keys"]))
    except AutomationError as error:
        failure = str(error)[:200]

        async def failed(tx: Tx) -> None:
            await audit.append(tx, who, "agent.unfence.failed", f"server:{server_id}", server_id=server_id, detail={"why": failure})

        session.write(failed)
        raise
    if json:
        output.data({"server": row["name"], "unfenced": True})
    else:
        output.text(f"the agent of {row['name']} takes any lease token again; the next order sets the mark")
