"""What stands behind the records of containers: nothing (fleet ``sim``), or real LXC containers (fleet ``lxc``, :mod:`flows.lab.lxc`).

The Proxmox face keeps records, locks and tasks, and asks here for the deed itself. It calls nothing twice at once for one container.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flows.lab.world import LabContainer


class SubstanceError(Exception):
    """The deed failed; the text, one line, becomes the task's exit status."""


@dataclass(frozen=True)
class Ended:
    """A command inside a container."""

    code: int
    out: bytes
    err: bytes


class Substance(Protocol):
    """Every method raises SubstanceError. What a killed predecessor left is removed by :meth:`open`."""

    async def open(self) -> None:
        """Before any part listens: bridge, images."""

    async def close(self) -> None:
        """Ends and removes everything: containers, mounts, bridge. Harmless twice."""

    async def template(self, container: LabContainer, flavor: str) -> None:
        """The root file system of a template exists afterwards."""

    async def clone(self, source: LabContainer, target: LabContainer, snapshot: str | None = None) -> None:
        """``target`` gets a root file system of its own, with what ``source`` (or its snapshot) holds now."""

    async def configure(self, container: LabContainer) -> None:
        """``container.config`` changed: what can change while it runs does (memory, cores), the rest at its next start."""

    async def start(self, container: LabContainer) -> None:
        """Returns when its init runs, as Proxmox does: before its services are up."""

    async def stop(self, container: LabContainer) -> None:
        """At once. Harmless where it does not run."""

    async def shutdown(self, container: LabContainer, timeout_s: float) -> bool:
        """By its init; False: still running after ``timeout_s``."""

    async def destroy(self, container: LabContainer) -> None:
        """It and its snapshots are gone. Harmless where there is none."""

    async def snapshot(self, container: LabContainer, name: str) -> None: ...

    async def rollback(self, container: LabContainer, name: str) -> None:
        """The container is stopped."""

    async def drop_snapshot(self, container: LabContainer, name: str) -> None: ...

    async def backup(self, container: LabContainer, archive: Path, say: Callable[[str], None]) -> None:
        """Writes a zstd tar of the root file system and the configuration to ``archive``, by rename."""

    async def restore(self, container: LabContainer, archive: Path, say: Callable[[str], None]) -> None:
        """``container`` is stopped or new; its root file system is then the archive's."""

    async def running(self, container: LabContainer) -> bool:
        """Asked of the system, not of the record."""

    async def execute(self, container: LabContainer, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0) -> Ended:
        """A command inside a running container, as root, with a clean environment."""


class Records:
    """Nothing behind them: every deed is done by having been asked."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def template(self, container: LabContainer, flavor: str) -> None: ...

    async def clone(self, source: LabContainer, target: LabContainer, snapshot: str | None = None) -> None: ...

    async def configure(self, container: LabContainer) -> None: ...

    async def start(self, container: LabContainer) -> None: ...

    async def stop(self, container: LabContainer) -> None: ...

    async def shutdown(self, container: LabContainer, timeout_s: float) -> bool:
        return True

    async def destroy(self, container: LabContainer) -> None: ...

    async def snapshot(self, container: LabContainer, name: str) -> None: ...

    async def rollback(self, container: LabContainer, name: str) -> None: ...

    async def drop_snapshot(self, container: LabContainer, name: str) -> None: ...

    async def backup(self, container: LabContainer, archive: Path, say: Callable[[str], None]) -> None:
        """The face keeps the record; there is no file."""
        say(f"creating vzdump archive '{archive}'")
        say("archive file size: 256MB")

    async def restore(self, container: LabContainer, archive: Path, say: Callable[[str], None]) -> None:
        say(f"extracting archive '{archive}'")

    async def running(self, container: LabContainer) -> bool:
        return container.status == "running"

    async def execute(self, container: LabContainer, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0) -> Ended:
        raise SubstanceError("a simulated container runs nothing")
