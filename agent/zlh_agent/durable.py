"""Small files that are there whole or not at all, also after a power cut. Used by what the agent must not forget."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_MARK = ".writing-"


def write(path: Path, text: str) -> None:
    """Replaces ``path`` (0600): temporary name, fsync, rename, fsync of the directory. Raises OSError, and then the old file is still there."""
    descriptor, name = tempfile.mkstemp(prefix=f"{_MARK}{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def tidy(directory: Path) -> None:
    """Removes what a writer that was killed left behind. Only while nobody writes there. Raises OSError."""
    for left in directory.glob(f"{_MARK}*"):
        left.unlink(missing_ok=True)
