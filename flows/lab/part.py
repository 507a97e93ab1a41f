"""What every part of the lab offers to the program that starts it (``flows.lab.__main__``) and to the control API.

Each of the modules ``proxmox``, ``agents``, ``bridge``, ``dns``, ``discord``, ``artifacts`` and ``runner`` exposes::

    async def start(config: LabConfig, world: World, faults: Faults) -> Part

which returns when the part listens. A part that can do more says so by also being one of the protocols below;
the control API asks with ``isinstance``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from aiohttp import web


class PartError(Exception):
    """A part refuses what the control API asked of it; the text goes to the caller (422)."""


@runtime_checkable
class Part(Protocol):
    """``endpoints`` maps a name to ``host:port`` or a URL, e.g. ``{"url": "http://127.0.0.1:8760"}``; it is written to the state file."""

    @property
    def name(self) -> str: ...

    @property
    def endpoints(self) -> Mapping[str, str]: ...

    async def stop(self) -> None:
        """Closes every listener and task. Harmless twice."""

    def inspect(self) -> dict[str, Any]:
        """What the part holds now, as JSON, for ``GET /state``."""


@runtime_checkable
class Restartable(Protocol):
    """A part that can lose its memory as its original does. The endpoints stay the same."""

    async def restart(self) -> None: ...


@runtime_checkable
class Manipulable(Protocol):
    """A part whose content can be changed behind the product's back.

    ``dns``: ``delete``, ``replace``, ``add`` with ``name``, ``rtype``, ``value``. ``bridge``: ``register`` with ``name``, ``address``,
    ``port``, ``deregister`` with ``name``. ``agents``: ``kill``, ``freeze``, ``revive``, ``crash`` with ``vmid``. Raises :class:`PartError`.
    """

    async def manipulate(self, op: str, arguments: Mapping[str, Any]) -> dict[str, Any]: ...


@runtime_checkable
class Routed(Protocol):
    """A part that is reached through the control listener, behind its bearer token, as the playbook runner is."""

    def routes(self) -> Sequence[web.RouteDef]: ...
