"""``zlh known-hosts``: the SSH host keys that the trust step read through the nodes. SSH itself asks for them (``KnownHostsCommand``), so that a
container made a minute ago is known and one that is gone is not."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli import output, session
from flows.state.quick import Query


def add_to(app: typer.Typer) -> None:
    app.command("known-hosts")(known_hosts)


def known_hosts(address: Annotated[str | None, typer.Argument(help="only of the container with this address; default: all")] = None) -> None:
    """Print the containers' SSH host keys as a known_hosts file. Nothing for an address that nobody has: strict SSH then refuses."""
    rows, _ = session.rows(lambda _: Query(_SQL, {"address": address or ""}))
    for row in rows:
        output.text(f"{row['address']} {row['key_type']} {row['public_key']}")


_SQL = """SELECT address, key_type, public_key FROM host_keys WHERE :address = '' OR address = :address ORDER BY address, key_type"""
