"""Removes what a lab left, knowing nothing but its directory: the lab may have been killed at any instruction, or be closing in order."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from flows.lab.lxc import cgroups, names, processes
from flows.lab.lxc.programs import PATH, tail
from flows.lab.substance import SubstanceError

_DEADLINE_S = 30.0
_POLL_S = 0.05
_NET = Path("/sys/class/net")
#: Programs that a lab starts and whose environment may be unreadable or overwritten by their title: found by a path in their arguments.
_OURS = ("lxc-", "[lxc monitor]", "sshd: /usr/sbin/sshd ")
#: Directories whose lab lives in this process, and the descriptors of their locks.
held: dict[Path, int] = {}


def hold(directory: Path) -> int | None:
    """Locks the directory for this process's lab; None where another process has it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def clean(directory: Path) -> list[str]:
    """Ends and removes everything that a lab in ``directory`` ever made; returns what that was. Harmless when repeated, and without root where
    there was no such lab. Raises SubstanceError where a lab lives in that directory, in another process, or where something resists."""
    directory = directory.resolve()
    descriptor = None
    if directory.is_dir() and directory not in held:
        deadline = time.monotonic() + 2  # a killed lab's child may have it still, until it becomes another program
        while (descriptor := hold(directory)) is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if descriptor is None:
            raise SubstanceError(f"{directory}: a lab lives there · stop it first")
    try:
        removed = _end(directory, names.container_prefix(directory))
        removed += _unmount(names.home(directory))
        removed += _groups(names.container_prefix(directory))
        removed += _network(directory)
        _forget_locks(names.locks(directory))
        return removed + _files(names.home(directory))
    finally:
        if descriptor is not None:
            os.close(descriptor)


def end_container(directory: Path, vmid: int) -> None:
    """One container's processes, groups and network card, where lxc itself failed to end them. Raises SubstanceError."""
    name = names.container_name(directory, vmid)
    _end(directory.resolve(), name, exact=True)
    _groups(name, exact=True)
    if (_NET / names.veth_name(directory, vmid)).exists():
        _ip("link", "delete", names.veth_name(directory, vmid), gone=_NET / names.veth_name(directory, vmid))


def thaw(name: str, *, exact: bool = True) -> None:
    """Whatever froze the container, or, not ``exact``, all whose names begin so."""
    for group in _own_groups(name, exact):
        cgroups.thaw(group)


def _matches(group: str, name: str, exact: bool) -> bool:
    return any(group == kind + name if exact else group.startswith(kind + name) for kind in ("lxc.payload.", "lxc.monitor."))


def _belongs(process: processes.Process, directory: Path, name: str, exact: bool) -> bool:
    lines = processes.read(process.pid, "cgroup").splitlines()
    if any(_matches(group, name, exact) for line in lines for group in line.split("/")[1:]):
        return True
    arguments = processes.read(process.pid, "cmdline").rstrip("\0")
    if exact:
        return arguments.startswith("[lxc monitor]") and arguments.endswith(f" {name}")
    if f"\0{names.MARK}={directory}\0" in f"\0{processes.read(process.pid, 'environ')}\0":
        return True
    words = arguments.replace("\0", " ").split(" ")
    return arguments.startswith(_OURS) and any(word.startswith((f"{names.home(directory)}/", f"{directory}/node/")) for word in words)


def _end(directory: Path, name: str, *, exact: bool = False) -> list[str]:
    """Kills until two looks in a row find nothing: one that was just being started may appear after the first."""
    spared, ended, quiet = processes.kin(os.getpid()), dict[int, str](), 0
    deadline = time.monotonic() + _DEADLINE_S
    while quiet < 2:
        found = [p for p in processes.every() if p.pid not in spared and _belongs(p, directory, name, exact)]
        for process in found:
            ended[process.pid] = process.name
            processes.send(process.pid, signal.SIGKILL)
        if found:
            thaw(name, exact=exact)
        quiet = 0 if found else quiet + 1
        if found and time.monotonic() > deadline:
            raise SubstanceError(f"{directory}: process {found[0].pid} ({found[0].name}) does not die · end it by hand")
        if quiet < 2:
            time.sleep(_POLL_S)
    return [f"process {pid} ({name})" for pid, name in sorted(ended.items())]


def mounts_below(mountinfo: str, home: Path) -> list[str]:
    """Mount points at and below ``home``, the deepest first."""
    points = [cgroups.unescape(line.split(" ")[4]) for line in mountinfo.splitlines()]
    return sorted((point for point in points if point == str(home) or point.startswith(f"{home}/")), key=len, reverse=True)


def _unmount(home: Path) -> list[str]:
    removed = []
    deadline = time.monotonic() + 3
    while points := mounts_below(Path("/proc/self/mountinfo").read_text(), home):
        lazy = time.monotonic() > deadline  # somebody stands in it: the mount goes when they do
        if time.monotonic() > deadline + 3:
            raise SubstanceError(f"{points[0]}: cannot be unmounted · umount it by hand")
        for point in points:
            ended = subprocess.run(  # noqa: S603 - a fixed program with a path of our own
                ["/usr/bin/umount", *(["--lazy"] if lazy else []), "--", point], capture_output=True, timeout=30, check=False
            )
            if ended.returncode == 0:
                removed.append(f"mount {point}")
        time.sleep(_POLL_S)
    return removed


def _own_groups(name: str, exact: bool) -> list[Path]:
    found = cgroups.groups(cgroups.detect().mounts, (f"lxc.payload.{name}", f"lxc.monitor.{name}"))
    return [group for group in found if _matches(group.name, name, exact)]


def _groups(name: str, *, exact: bool = False) -> list[str]:
    removed = []
    deadline = time.monotonic() + 5
    for group in _own_groups(name, exact):
        while True:
            try:
                cgroups.remove(group)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise SubstanceError(f"{group}: {error.strerror} · remove it by hand") from error
                time.sleep(_POLL_S)
            else:
                removed.append(f"cgroup {group}")
                break
    return removed


def _network(directory: Path) -> list[str]:
    removed = []
    prefix, bridge = names.veth_prefix(directory), names.bridge_name(directory)
    for card in sorted(os.listdir(_NET), key=lambda name: name == bridge):
        if card == bridge or (card.startswith(prefix) and (_NET / card / "iflink").exists()):
            _ip("link", "delete", card, gone=_NET / card)
            removed.append(f"interface {card}")
    return removed


def _ip(*arguments: str, gone: Path) -> None:
    ended = subprocess.run(  # noqa: S603 - names of our own
        ["/usr/bin/env", f"PATH={PATH}", "ip", *arguments], capture_output=True, timeout=30, check=False
    )
    if ended.returncode != 0 and gone.exists():
        raise SubstanceError(f"ip {' '.join(arguments)}: {tail(ended.stderr)}")


def _forget_locks(locks: Path) -> None:
    """And the directories above that hold nothing else. No finding of its own: each of lxc's programs leaves one."""
    shutil.rmtree(locks, ignore_errors=True)
    for above in locks.parents:
        if above == Path("/run/lxc/lock"):
            return
        try:
            above.rmdir()
        except OSError:
            return


def _files(home: Path) -> list[str]:
    if not home.exists():
        return []
    deadline = time.monotonic() + 5
    while True:
        try:
            shutil.rmtree(home)
        except FileNotFoundError:
            pass
        except OSError as error:
            if time.monotonic() > deadline:
                raise SubstanceError(f"{home}: {error.strerror}: {error.filename} · remove it by hand") from error
            time.sleep(_POLL_S)
        if not home.exists():
            return [f"files {home}"]
