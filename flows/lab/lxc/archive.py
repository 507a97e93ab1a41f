"""Backups: a zstd tar of the merged root file system, with numeric owners and extended attributes, and the record's configuration in front.

The overlay of a backup is mounted in the mount namespace of the one command that reads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.lab.lxc import layers
from flows.lab.lxc.programs import Programs, tail
from flows.lab.substance import SubstanceError

ARCHIVE_S = 1_800.0
MEMBER = "./etc/vzdump/lab.json"
_ATTRIBUTES = ("--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*")
_MOUNT = 'mount -t overlay -o "ro,lowerdir=$1:$2" lab "$3" && shift 3 && exec "$@"'


async def write(archive: Path, layer: Path, image: Path, config: Mapping[str, Any], scratch: Path, programs: Programs) -> int:
    """Writes ``archive`` by rename and returns its size in bytes. ``layer`` is not written to meanwhile; ``scratch`` is an empty directory
    that exists. Raises SubstanceError; then there is no archive of that name, or still the old one."""
    extra, merged = scratch / "extra", scratch / "merged"
    fresh = _beside(archive, scratch)
    try:
        (extra / MEMBER).parent.mkdir(parents=True)
        (extra / MEMBER).write_text(json.dumps(dict(config), sort_keys=True))
        merged.mkdir()
        source = layer / "upper" if layers.whole(layer) else merged
        tar = ["tar", "--create", f"--file={fresh}", "--use-compress-program=zstd -1 -T0", "--one-file-system", "--sparse", *_ATTRIBUTES]
        tar += [f"--directory={extra}", MEMBER, f"--directory={source}", "."]
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNT, "sh", f"{layer / 'upper'}", f"{image}", f"{merged}", *tar]
        await programs.do(*(tar if layers.whole(layer) else command), timeout_s=ARCHIVE_S, what="backup")
        await asyncio.to_thread(_sync, fresh)
        size = fresh.stat().st_size
        fresh.replace(archive)
        await asyncio.to_thread(_sync, archive.parent)
    except OSError as error:
        raise SubstanceError(f"backup: {archive}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        await layers.discard(scratch)
    return size


async def extract(archive: Path, home: Path, programs: Programs) -> None:
    """A whole layer in ``home``, a directory that does not exist. Raises SubstanceError, and leaves nothing, where the archive is not whole."""
    try:
        layers.make(home)
        (home / "whole").touch()
        tar = ["tar", "--extract", f"--file={archive}", "--use-compress-program=zstd -d", "--preserve-permissions", *_ATTRIBUTES]
        await programs.do(*tar, f"--exclude={MEMBER}", f"--directory={home / 'upper'}", timeout_s=ARCHIVE_S, what=f"restore of {archive.name}")
    except OSError as error:
        raise SubstanceError(f"restore of {archive.name}: {error.strerror}") from error
    except BaseException:
        await layers.discard(home)
        raise


async def configuration(archive: Path, programs: Programs) -> dict[str, Any]:
    """The configuration that the record had. Raises SubstanceError for what is no backup of a lab."""
    command = ["tar", "--extract", f"--file={archive}", "--use-compress-program=zstd -d", "--occurrence=1", "--to-stdout", MEMBER]
    ended = await programs.run(*command, timeout_s=60)
    with contextlib.suppress(ValueError):
        found = json.loads(ended.out)
        if isinstance(found, dict):
            return found
    raise SubstanceError(f"{archive.name}: no backup of a lab: {tail(ended.err)}")


def _beside(archive: Path, scratch: Path) -> Path:
    """Where it is written until it is whole: in ``scratch``, where a killed lab's half is found, if a rename leads from there."""
    with contextlib.suppress(OSError):
        if scratch.stat().st_dev == archive.parent.stat().st_dev:
            return scratch / "archive"
    return archive.with_name(f".{archive.name}.{uuid.uuid4().hex[:8]}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
