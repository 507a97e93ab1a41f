"""Which container is ours: said by its description or tags, never by its VMID alone."""

from __future__ import annotations

from flows.domain.server import Server
from flows.domain.sources import OUR_TAG, ContainerConfig


def operation_mark(operation_id: str) -> str:
    """Description of a clone, and later a tag: names the operation that made it."""
    return f"zlh-op-{operation_id}"


def server_tag(server_id: str) -> str:
    return f"zlh-srv-{server_id}"


def tags(server: Server, operation_id: str) -> frozenset[str]:
    """Tags of a configured container. Inventory groups are made from them."""
    return frozenset({OUR_TAG, server.ctype.value, server_tag(server.id), operation_mark(operation_id)})


def made_by(config: ContainerConfig, operation_id: str) -> bool:
    """Whether this operation made the container."""
    mark = operation_mark(operation_id)
    return mark in config.description.split() or mark in config.tags


def belongs_to(config: ContainerConfig, server: Server) -> bool:
    """Whether the container is this server's."""
    return server_tag(server.id) in config.tags


def ours(config: ContainerConfig, server: Server, operation_id: str) -> bool:
    """Whether it is this server's, or was made by this operation, which may not have tagged it yet."""
    return made_by(config, operation_id) or belongs_to(config, server)
