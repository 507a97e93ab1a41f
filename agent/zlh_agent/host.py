"""The container's memory and disk, as its own kernel files say. Reads only; used by ``routes`` and ``supervisor``."""

from __future__ import annotations

import os
from pathlib import Path

#: Limit and use of memory, cgroup version 2 and 1.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def memory() -> dict[str, int]:
    """Bytes: ``used`` and ``total``. The container's own limit counts where ``/proc/meminfo`` speaks of the whole machine (no lxcfs)."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {words[0]: int(words[1]) for words in lines if len(words) > 1}
    total, available = kib["MemTotal:"] * 1024, kib["MemAvailable:"] * 1024
    for limit, used in _LIMITS:
        try:
            most, now = Path(limit).read_text().strip(), int(Path(used).read_text())
        except (OSError, ValueError):
            continue
        if most.isdigit() and int(most) < total:
            return {"used": min(now, int(most)), "total": int(most)}
    return {"used": max(0, total - available), "total": total}


def disk(path: Path) -> dict[str, int]:
    """Bytes of the filesystem that holds ``path``, or the root's where that is gone: ``used`` and ``total``."""
    try:
        found = os.statvfs(path)
    except OSError:
        found = os.statvfs("/")
    return {"used": (found.f_blocks - found.f_bfree) * found.f_frsize, "total": found.f_blocks * found.f_frsize}


def oom_kills() -> int:
    """Processes that the kernel killed for want of memory; 0 where it does not say. Only differences mean something.

    With cgroup version 2 those of this container; version 1 forgets them with the unit's own group, so it is the machine's count there.
    """
    for name in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            lines = Path(name).read_text().splitlines()
        except OSError:
            continue
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    return 0


def boot() -> str:
    """One boot of this container: its own first process began then. (A container's restart leaves the kernel's ``boot_id`` as it is.)"""
    began = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}-{began}"
