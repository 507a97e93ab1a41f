"""Who uses the database now, and who did lately: its connections, and the holders that its rows name. For ``zlh validate workers``."""

from __future__ import annotations

import ipaddress

from sqlalchemy import select, text

from flows.domain.topology import Peer, host_of
from flows.state import tables as t
from flows.state.database import Tx

_CONNECTIONS = {
    "mysql": (
        "SELECT CAST(id AS CHAR) AS id, user AS who, host AS address FROM information_schema.processlist "
        "WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    ),
    "postgresql": (
        "SELECT CAST(pid AS TEXT) AS id, usename || CASE WHEN application_name = '' THEN '' ELSE ' (' || application_name || ')' END AS who, "
        "CAST(client_addr AS TEXT) AS address FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    ),
}


async def connections(tx: Tx) -> list[Peer] | None:
    """Every other connection to our database; None for a file, which lists none."""
    query = _CONNECTIONS.get(tx.dialect)
    if query is None:
        return None
    rows = await tx.execute(text(query))
    return [_peer(str(row.who or "?"), str(row.id), str(row.address or "")) for row in rows]


def _peer(who: str, id_: str, address: str) -> Peer:
    """MariaDB writes ``address:port``, ``name:port`` where it resolves names, or ``localhost``; PostgreSQL the address with a prefix length, or
    nothing for a socket."""
    client = address.partition("/")[0]
    if client.count(":") == 1:
        client = client.partition(":")[0]
    if loopback(client) or _numeric(client):
        return Peer("database connection", f"{who}#{id_}", address=client, local=loopback(client))
    return Peer("database connection", f"{who}#{id_}", host=client)


def _numeric(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def loopback(address: str) -> bool:
    """Whether it is of the very machine on which the server runs."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address in ("", "localhost")


async def holders(tx: Tx, window_ms: int) -> list[Peer]:
    """Processes that hold the epoch, a lease or a message now, or swept or submitted within ``window_ms``. People, who hold leases too, are no
    machines and left out."""
    since = tx.now - window_ms
    epochs, leases, sweeps, outbox, attempts = t.epochs.c, t.leases.c, t.sweeps.c, t.outbox.c, t.attempts.c
    asked = (
        ("controller", select(epochs.holder).where(epochs.holder.is_not(None), epochs.expires_at > tx.now)),
        ("controller", select(sweeps.holder).where(sweeps.started_at > since)),
        ("lease holder", select(leases.holder).where(leases.holder.is_not(None), leases.expires_at > tx.now)),
        ("dispatcher", select(outbox.claimed_by).where(outbox.claimed_until > tx.now)),
        ("dispatcher", select(attempts.submitter).where(attempts.submit_until > since)),
    )
    found = {(role, str(row[0])) for role, query in asked for row in await tx.execute(query.distinct()) if row[0]}
    return [Peer(role, name, host=host_of(name)) for role, name in sorted(found) if host_of(name)]
