"""Who is at work: every worker, Redis client, database connection and lock holder that a look found, and who is expected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: As ``bootstrap.holder()`` writes them: host, process, a random part.
_HOLDER = re.compile(r"(?P<host>[^:\s]+):\d+:[0-9a-f]{8}")
#: As ``zlh up`` names the engine's workers.
_WORKER = re.compile(r"zlh:(?P<host>[^:\s]+):.+")


@dataclass(frozen=True, slots=True)
class Peer:
    """``role`` for people (*engine's worker*, *Redis client*, …); ``host`` a machine's name, ``address`` its address: what is not known is empty.
    ``local``: it reaches its server from this very machine."""

    role: str
    name: str
    host: str = ""
    address: str = ""
    local: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """``hosts``: names of the machines that may run parts of ours, with their addresses. ``here``: this machine's name. ``workers``: how many
    of the engine's workers may be online."""

    hosts: Mapping[str, frozenset[str]]
    here: str
    workers: int = 1


def host_of(name: str) -> str:
    """The machine that a holder or a worker names; empty where it names none, as a person does."""
    match = _HOLDER.fullmatch(name) or _WORKER.fullmatch(name)
    return match["host"] if match else ""


def worker_name(host: str, process: int, began: float) -> str:
    """A worker's name, by which its machine is known again."""
    return f"zlh:{host}:{process}-{began:.0f}"
