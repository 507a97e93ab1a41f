"""Control groups, of both versions and of the hybrid: what this host can limit, and where a container's groups are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PERIOD_US = 100_000


@dataclass(frozen=True)
class Limits:
    """Keys and values for ``lxc-cgroup`` and, with :attr:`prefix`, for lxc's configuration."""

    prefix: str
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Hierarchies:
    """``v1``: controllers with a hierarchy of version 1; ``v2``: those of the unified one."""

    v1: frozenset[str]
    v2: frozenset[str]
    mounts: tuple[Path, ...]

    def limits(self, memory_mb: int | None, cores: float | None) -> list[Limits]:
        """None: no limit. What this host has no controller for is left out: the lab runs without that limit."""
        old: list[tuple[str, str]] = []
        new: list[tuple[str, str]] = []
        quota = "-1" if cores is None else str(int(cores * _PERIOD_US))
        if "memory" in self.v1:
            old.append(("memory.limit_in_bytes", "-1" if memory_mb is None else str(memory_mb << 20)))
        elif "memory" in self.v2:
            new.append(("memory.max", "max" if memory_mb is None else str(memory_mb << 20)))
        if "cpu" in self.v1:
            old.append(("cpu.cfs_quota_us", quota))
        elif "cpu" in self.v2:
            new.append(("cpu.max", f"{'max' if cores is None else quota} {_PERIOD_US}"))
        return [Limits(prefix, tuple(values)) for prefix, values in (("lxc.cgroup", old), ("lxc.cgroup2", new)) if values]

    @property
    def devices(self) -> str | None:
        """Prefix of the device rules; None where nothing enforces them."""
        if "devices" in self.v1:
            return "lxc.cgroup.devices"
        return "lxc.cgroup2.devices" if self.v2 else None


def parse(mountinfo: str, controllers: str) -> Hierarchies:
    """From /proc/self/mountinfo and the unified hierarchy's cgroup.controllers."""
    v1: set[str] = set()
    mounts: list[Path] = []
    unified = False
    for line in mountinfo.splitlines():
        head, _, rest = line.partition(" - ")
        kind, *_, options = rest.split(" ")
        if kind not in ("cgroup", "cgroup2"):
            continue
        mounts.append(Path(unescape(head.split(" ")[4])))
        if kind == "cgroup2":
            unified = True
        else:
            v1 |= {option for option in options.split(",") if "=" not in option} - {"rw", "ro"}
    return Hierarchies(frozenset(v1), frozenset(controllers.split()) if unified else frozenset(), tuple(mounts))


def unescape(path: str) -> str:
    """A path as mountinfo writes it: blanks are octal."""
    return path.encode().decode("unicode_escape").encode("latin-1").decode(errors="replace") if "\\" in path else path


def detect() -> Hierarchies:
    """This host's. Raises OSError where /proc is missing."""
    mountinfo = Path("/proc/self/mountinfo").read_text()
    first = parse(mountinfo, "")
    controllers = ""
    for mount in first.mounts:
        with contextlib.suppress(OSError):
            controllers += (mount / "cgroup.controllers").read_text() + " "
    return parse(mountinfo, controllers)


def groups(mounts: Iterable[Path], names: tuple[str, ...]) -> Iterator[Path]:
    """Groups whose own name starts with one of ``names``, wherever they are."""
    for mount in mounts:
        for parent, children, _ in os.walk(mount):
            mine = [child for child in children if child.startswith(names)]
            yield from (Path(parent, child) for child in mine)
            children[:] = [child for child in children if child not in mine]


def remove(group: Path) -> None:
    """It and the groups below. Raises OSError where a process is left in one."""
    for parent, children, _ in os.walk(group, topdown=False):
        for child in children:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(Path(parent, child))
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(group)


def thaw(group: Path) -> None:
    """A frozen process of version 1 cannot even be killed."""
    for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):
            if (group / file).exists():
                (group / file).write_text(value)
