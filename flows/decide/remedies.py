"""The exact command with which a person mends what automation does not. Pure."""

from __future__ import annotations

from flows.domain.snapshot import Snapshot


def mend(snapshot: Snapshot, otherwise: str, *, level: int = 1) -> str:
    """Where only the level stands in the way, the command that allows it (it asks first); else ``otherwise``."""
    return f"zlh repair-level set {level}" if snapshot.fleet.max_level < level else otherwise
