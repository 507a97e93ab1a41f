"""The writable part of a container: ``<home>/upper``, over the image, or, after a restore, a whole root by itself (``<home>/whole`` exists).

A layer is copied, never shared: copies by reflink where the file system can, so that a source and its clone, a container and its snapshot, live
and die alone. Whatever fails half-way leaves what was there before. overlayfs's own marks (white-outs, opaque directories) are devices
and attributes that ``cp --archive`` keeps.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from pathlib import Path

from flows.lab.lxc.programs import Programs

COPY_S = 600.0


def make(home: Path) -> None:
    """An empty layer: exactly what the image holds."""
    (home / "upper").mkdir(parents=True)
    (home / "upper").chmod(0o755)


def whole(home: Path) -> bool:
    return (home / "whole").exists()


def root(home: Path, image: Path) -> str:
    """lxc.rootfs.path."""
    return f"dir:{home / 'upper'}" if whole(home) else f"overlay:{image}:{home / 'upper'}"


async def copy(source: Path, target: Path, programs: Programs) -> None:
    """``target``, a directory that does not exist, becomes a layer of its own with what ``source`` holds. Nothing writes to ``source``."""
    building = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        building.mkdir(parents=True, mode=0o755)
        upper = source / "upper"
        await programs.do("cp", "--archive", "--reflink=auto", "--no-target-directory", upper, building / "upper", timeout_s=COPY_S, what="copying")
        if whole(source):
            (building / "whole").touch()
        building.rename(target)
    except BaseException:
        await discard(building)
        raise


async def replace(home: Path, fresh: Path) -> None:
    """The layer in ``fresh`` becomes that of ``home``. Raises OSError."""
    old = home / f".old.{uuid.uuid4().hex[:8]}"
    old.mkdir()
    (home / "upper").rename(old / "upper")
    if whole(home):
        (home / "whole").rename(old / "whole")
    (fresh / "upper").rename(home / "upper")
    if whole(fresh):
        (home / "whole").touch()
    for left in (fresh, old, home / "work", home / "olwork"):  # the last two are overlayfs's, by new and by old lxc: they belong to the old layer
        await discard(left)


async def discard(path: Path) -> None:
    """Removes it, beside the event loop; what cannot be removed now, the lab's end removes."""
    await asyncio.shield(asyncio.to_thread(shutil.rmtree, path, ignore_errors=True))
