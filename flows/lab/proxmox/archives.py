"""Backups as a storage holds them. What is in one is the substance's: a file of a real container; a record keeps its record here."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.lab.proxmox.rights import Identity
from flows.lab.world import LabContainer

#: ``compress`` of vzdump → what the archive's name ends with.
EXTENSIONS = {"0": "tar", "1": "tar.lzo", "lzo": "tar.lzo", "gzip": "tar.gz", "zstd": "tar.zst"}
_KEEP = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_PERIOD = {"hourly": "%Y/%m/%d-%H", "daily": "%Y/%m/%d", "weekly": "%G/%V", "monthly": "%Y/%m", "yearly": "%Y"}


@dataclass
class Archive:
    """``record`` is the container as it was; ``file`` its real contents, where there are any."""

    volid: str
    node: str
    vmid: int
    ctime: int
    size: int
    record: LabContainer
    file: Path
    notes: str = ""
    protected: bool = False

    @property
    def storage(self) -> str:
        return self.volid.partition(":")[0]

    @property
    def filename(self) -> str:
        return self.volid.rpartition("/")[2]

    @property
    def path(self) -> str:
        """Where a node has it."""
        return shown_path(self.storage, self.filename)

    @property
    def format(self) -> str:
        return self.filename.partition(".")[2]

    def view(self) -> dict[str, Any]:
        """As the content of its storage shows it: of notes the first line alone."""
        found = {"volid": self.volid, "content": "backup", "subtype": "lxc", "format": self.format, "vmid": self.vmid}
        found |= {"ctime": self.ctime, "size": self.size}
        if self.notes:
            found["notes"] = self.notes.split("\n", 1)[0]
        if self.protected:
            found["protected"] = 1
        return found


def shown_path(storage: str, filename: str) -> str:
    return f"/var/lib/vz/dump/{filename}" if storage == "local" else f"/mnt/pve/{storage}/dump/{filename}"


class Archives:
    """All of a cluster's. ``directory``: below it lie the files of real containers' backups; None: records have none."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._held: dict[tuple[str, str], Archive] = {}  # by the node (or "" where the storage is shared) and volid

    def add(self, place: str, archive: Archive) -> None:
        self._held[place, archive.volid] = archive

    def on(self, place: str, storage: str, vmid: int | None = None) -> list[Archive]:
        """Oldest first."""
        found = [a for (where, _), a in self._held.items() if where == place and a.storage == storage and vmid in (None, a.vmid)]
        return sorted(found, key=lambda a: (a.ctime, a.volid))

    def find(self, place: str, volid: str) -> Archive | None:
        return self._held.get((place, volid))

    def name(self, place: str, storage: str, vmid: int, extension: str, now: float) -> tuple[str, int] | None:
        """Filename and Unix time of a backup that begins now; None: there is one of this second."""
        stamp = int(now)
        filename = f"vzdump-lxc-{vmid}-{time.strftime('%Y_%m_%d-%H_%M_%S', time.gmtime(stamp))}.{extension}"
        return None if (place, f"{storage}:backup/{filename}") in self._held else (filename, stamp)

    def file(self, place: str, storage: str, filename: str) -> Path:
        """Where the substance is to write it. Raises OSError."""
        if self.directory is None:
            return Path(shown_path(storage, filename))
        above = self.directory / (place or "shared") / storage
        above.mkdir(parents=True, exist_ok=True)
        return above / filename

    def remove(self, place: str, archive: Archive) -> None:
        """Raises OSError."""
        if self.directory is not None:
            archive.file.unlink(missing_ok=True)
        self._held.pop((place, archive.volid), None)


def may_use(identity: Identity, volid: str, owner: int | None) -> None:
    """Raises PveError 403 unless the caller may read that backup."""
    storage = volid.partition(":")[0]
    if identity.may(f"/storage/{storage}", "Datastore.Allocate"):
        return
    identity.require(f"/storage/{storage}", "Datastore.AllocateSpace")
    if owner is not None:
        identity.require(f"/vms/{owner}", "VM.Backup")


def owner_of(volid: str) -> int | None:
    """The VMID in a backup's name."""
    found = re.search(r":backup/vzdump-lxc-([1-9]\d{2,8})-", volid)
    return int(found[1]) if found else None


def retention(text: str) -> dict[str, int]:
    """``keep-last=3,keep-daily=7``. Raises ValueError with Proxmox's text."""
    kept: dict[str, int] = {}
    for part in text.split(","):
        key, _, number = part.partition("=")
        name = key.removeprefix("keep-")
        if not key.startswith("keep-") or name not in (*_KEEP, "all") or not number.isdecimal():
            raise ValueError("invalid format - format error\n")
        kept[name] = int(number)
    if kept.get("all") and len(kept) > 1:
        raise ValueError("keep-all cannot be set together with other options.\n")
    return kept


def superfluous(archives: Sequence[Archive], keep: Mapping[str, int]) -> list[Archive]:
    """Those that no rule keeps. Protected ones count for none."""
    if keep.get("all") or not any(keep.values()):
        return []
    left = [a for a in reversed(archives) if not a.protected]
    kept: set[str] = set()
    for rule in _KEEP:
        with contextlib.suppress(KeyError):
            _keep(left, kept, keep[rule], _PERIOD.get(rule))
    return [a for a in left if a.volid not in kept]


def _keep(newest_first: Sequence[Archive], kept: set[str], count: int, period: str | None) -> None:
    """Marks the newest of each of ``count`` periods that no earlier rule covers."""

    def of(archive: Archive) -> str:
        return archive.volid if period is None else time.strftime(period, time.gmtime(archive.ctime))

    covered = {of(a) for a in newest_first if a.volid in kept}
    chosen: set[str] = set()
    for archive in newest_first:
        if len(chosen) >= count:
            return
        if archive.volid not in kept and of(archive) not in covered | chosen:
            chosen.add(of(archive))
            kept.add(archive.volid)
