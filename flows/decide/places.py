"""Where something is, as people call it: a server by its name and host, anything else by what it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from flows.domain.snapshot import Fleet

#: What the first part of a subject means.
_WORDS: Mapping[str, str] = {
    "operation": "operation",
    "dns": "DNS name",
    "proxy": "proxy entry",
    "host": "host",
    "source": "source",
    "queue": "queue",
    "lease": "lease",
    "container": "container",
    "vmid": "VMID",
}


def where(fleet: Fleet, subject: str, server_id: str | None, host: str | None) -> str:
    """``subject`` as in :class:`Finding`. A server that the fleet does not hold any more goes by what is left of it."""
    kind, _, name = subject.partition(":")
    thing = f"{_WORDS[kind]} {name}" if kind in _WORDS else ""
    server = fleet.servers.get(server_id or "")
    if server is None:
        return f"{thing or subject} on {host}" if kind == "container" and host else thing or subject
    at = f"{server.name} on {host or server.node}"
    return f"{at}, {thing}" if thing and kind != "lease" else at
