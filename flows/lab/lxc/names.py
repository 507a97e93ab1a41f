"""Every name that a lab gives to something of the machine, from its directory alone. Pure, but for resolving the path."""

from __future__ import annotations

import hashlib
import re
from ipaddress import IPv4Network
from pathlib import Path

MARK = "ZLH_LAB_DIRECTORY"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PATH = re.compile(r"/[A-Za-z0-9._/@+=~-]+")  # neither overlayfs's options nor lxc's configuration can quote
_SNAPSHOT = re.compile(r"[A-Za-z][A-Za-z0-9_-]{1,39}")


def usable(directory: Path) -> bool:
    """Whether the path can stand in mount options and in lxc's configuration."""
    return _PATH.fullmatch(str(directory.resolve())) is not None


def usable_snapshot(name: str) -> bool:
    """Proxmox's rule for the names of snapshots; no path can be made of one."""
    return _SNAPSHOT.fullmatch(name) is not None


def tag(directory: Path) -> str:
    """Eight hexadecimal digits that stand for the directory."""
    return hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]


def home(directory: Path) -> Path:
    """Where everything of the containers lies; a name that no other program uses, since it is removed as a whole."""
    return directory.resolve() / "zlh-containers"


def locks(directory: Path) -> Path:
    """What lxc's programs leave for a path of containers."""
    return Path("/run/lxc/lock") / home(directory).relative_to("/")


def mark(directory: Path) -> dict[str, str]:
    """Environment of every process that a lab starts and that :func:`flows.lab.lxc.clean` shall find."""
    return {MARK: str(directory.resolve())}


def bridge_name(directory: Path) -> str:
    return f"zlh{tag(directory)}"


def container_prefix(directory: Path) -> str:
    return f"zlh{tag(directory)}-"


def container_name(directory: Path, vmid: int) -> str:
    """Unique on the machine: lxc names cgroups by it."""
    return f"{container_prefix(directory)}{vmid}"


def veth_prefix(directory: Path) -> str:
    return f"v{tag(directory)}"


def veth_name(directory: Path, vmid: int) -> str:
    """The host's end, at most 15 characters for every VMID that Proxmox allows."""
    digits = ""
    while vmid:
        vmid, rest = divmod(vmid, 36)
        digits = _DIGITS[rest] + digits
    return veth_prefix(directory) + (digits or "0")


def hardware_address(directory: Path, vmid: int) -> str:
    """For a card whose record has none: the same at every start, or neighbours would look for the old one."""
    digits = hashlib.sha256(container_name(directory, vmid).encode()).hexdigest()[:10]
    return ":".join(["02", *(digits[i : i + 2] for i in range(0, 10, 2))])


def default_network(directory: Path) -> IPv4Network:
    """A /24 inside 10.213.0.0/16 by the directory's hash: two labs rarely meet, and where they do, the second one says so."""
    return IPv4Network(((10 << 24) | (213 << 16) | (int(tag(directory)[:2], 16) << 8), 24))
