"""What the front door asks of the creation transaction, and what it gets."""

from __future__ import annotations

from dataclasses import dataclass

from flows.domain.operation import Operation
from flows.domain.server import ContainerType, Runtime, Server


@dataclass(frozen=True, slots=True)
class Creation:
    """A validated order. ``(customer_id, ctype, nonce)`` deduplicates; ``body_hash`` tells a repeat from another order under the same nonce.
    ``token_id``: whose credential ordered; one token may order while intake is closed."""

    customer_id: str
    actor: str
    ctype: ContainerType
    name: str
    flavor: str
    version: str
    memory_mb: int
    cores: int
    disk_gb: int
    nonce: str
    body_hash: str
    runtimes: tuple[Runtime, ...] = ()
    code_server: bool = False
    token_id: str | None = None


@dataclass(frozen=True, slots=True)
class Ranges:
    """From what identities are handed out, and how long an operation may take in all (ms)."""

    vmid_first: int
    vmid_last: int
    pool: str
    address_first: str
    gateway: str
    operation_ms: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """An order that is in the database. ``deduplicated``: it was there already."""

    operation: Operation
    server: Server
    deduplicated: bool = False


@dataclass(frozen=True, slots=True)
class Ordered:
    """The answer to an order about an existing server. ``operation`` is None where nothing was left to do; ``deduplicated``: the order
    repeats what already is or runs."""

    server: Server
    operation: Operation | None
    deduplicated: bool = False
