"""A container's configuration as Proxmox keeps it: what may be set, by whom, and how it is written down."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import secrets
from typing import Any

from flows.lab.proxmox.errors import PveError
from flows.lab.proxmox.params import BOOL, MISSING, UNKNOWN, P, boolean, dns_name
from flows.lab.proxmox.rights import Identity
from flows.lab.world import LabContainer

MIB, GIB = 1 << 20, 1 << 30
_UNITS = {"": 1, "K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}
_NET_KEYS = frozenset("name bridge firewall gw gw6 host-managed hwaddr ip ip6 link_down mtu rate tag trunks type".split())
#: ``lock`` values, in the schema's order.
LOCKS = ("backup", "create", "destroyed", "disk", "fstrim", "migrate", "mounted", "rollback", "snapshot", "snapshot-delete")


def tag_list(value: str) -> str:
    """Lower case, sorted, unique, joined by ``;``. Takes commas, spaces and repeated keys. Raises ValueError."""
    tags = {part.lower() for part in re.split(r"[;,\s\0]+", value) if part}
    for tag in sorted(tags):
        if not re.fullmatch(r"[a-z0-9_][a-z0-9_\-+.]*", tag):
            raise ValueError(f"invalid format - invalid characters in tag '{tag}'\n")
    return ";".join(sorted(tags))


def properties(value: str) -> dict[str, str]:
    """``a=1,b=2`` as a dictionary; a part without ``=`` is the volume. Raises ValueError."""
    found: dict[str, str] = {}
    for part in value.split(","):
        key, separator, item = part.partition("=")
        key, item = (key, item) if separator else ("volume", part)
        if not item or key in found:
            raise ValueError("invalid format - format error\n")
        found[key] = item
    return found


def _address(value: str, version: int, *words: str) -> bool:
    if value in words:
        return True
    try:
        return "/" in value and ipaddress.ip_interface(value).version == version
    except ValueError:
        return False


def net(value: str) -> str:
    """A network card, normalised: the name first, the rest sorted, hardware address and type filled in. Raises ValueError."""
    given = properties(value)
    problems = [f"{key}: {UNKNOWN}" for key in given if key not in _NET_KEYS]
    if "name" not in given:
        problems.append(f"name: {MISSING}")
    if "ip" in given and not _address(given["ip"], 4, "dhcp", "manual"):
        problems.append("ip: invalid format - value does not look like a valid ipv4 network configuration")
    if "ip6" in given and not _address(given["ip6"], 6, "auto", "dhcp", "manual"):
        problems.append("ip6: invalid format - value does not look like a valid ipv6 network configuration")
    if not re.fullmatch(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", given.setdefault("hwaddr", mac())):
        problems.append("hwaddr: invalid format - value does not look like a valid unicast MAC address")
    if given.setdefault("type", "veth") != "veth":
        problems.append(f"type: value '{given['type']}' does not have a value in the enumeration 'veth'")
    if problems:
        raise ValueError("invalid format - format error\n" + "\n".join(problems) + "\n")
    return f"name={given.pop('name')}," + ",".join(f"{k}={given[k]}" for k in sorted(given))


def mac() -> str:
    """A hardware address under Proxmox's prefix."""
    return "BC:24:11:" + ":".join(f"{b:02X}" for b in secrets.token_bytes(3))


def size_bytes(value: str) -> int:
    """``"4G"`` → bytes. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", value)
    if not found:
        raise ValueError("invalid size string")
    return int(float(found[1]) * _UNITS[found[2]])


def size_text(size: int) -> str:
    """Bytes → the largest unit that divides them."""
    for unit in "TGMK":
        if size % _UNITS[unit] == 0 and size:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def features(value: str) -> str:
    """Raises ValueError for an unknown one."""
    known = {"force_rw_sys", "fuse", "keyctl", "mknod", "mount", "nesting"}
    given = properties(value)
    for key, item in given.items():
        if key not in known:
            raise ValueError(f"invalid format - format error\nfeatures.{key}: {UNKNOWN}\n")
        if key != "mount":
            given[key] = str(int(boolean(item)))
    return ",".join(f"{k}={given[k]}" for k in sorted(given))


def _names(value: str) -> str:
    return " ".join(dns_name(part) for part in re.split(r"[;,\s\0]+", value) if part)


#: Everything that ``PUT …/config`` and ``POST …/lxc`` take as configuration.
CONFIG: dict[str, P] = {
    "arch": P(enum=("amd64", "i386", "arm64", "armhf", "riscv32", "riscv64")),
    "cmode": P(enum=("shell", "console", "tty")),
    "console": BOOL,
    "cores": P("integer", minimum=1, maximum=8192),
    "cpulimit": P("number", minimum=0, maximum=8192),
    "cpuunits": P("integer", minimum=0, maximum=500_000),
    "debug": BOOL,
    "description": P(max_length=8192),
    "dev[n]": P(),
    "entrypoint": P(),
    "env": P(),
    "features": P(form=features),
    "hookscript": P(),
    "hostname": P(max_length=255, form=dns_name),
    "lock": P(enum=LOCKS),
    "memory": P("integer", minimum=16),
    "mp[n]": P(),
    "nameserver": P(),
    "net[n]": P(form=net),
    "onboot": BOOL,
    "ostype": P(enum=("debian", "devuan", "ubuntu", "centos", "fedora", "opensuse", "archlinux", "alpine", "gentoo", "nixos", "unmanaged")),
    "protection": BOOL,
    "rootfs": P(),
    "searchdomain": P(form=_names),
    "startup": P(),
    "swap": P("integer", minimum=0),
    "tags": P(form=tag_list),
    "template": BOOL,
    "timezone": P(),
    "tty": P("integer", minimum=0, maximum=6),
    "unprivileged": BOOL,
    "unused[n]": P(),
}
READ_ONLY = frozenset({"arch", "ostype", "template", "unprivileged"})
_RIGHT_OF = {
    "cores": "VM.Config.CPU",
    "cpulimit": "VM.Config.CPU",
    "cpuunits": "VM.Config.CPU",
    "memory": "VM.Config.Memory",
    "swap": "VM.Config.Memory",
    "hostname": "VM.Config.Network",
    "nameserver": "VM.Config.Network",
    "searchdomain": "VM.Config.Network",
    "rootfs": "VM.Config.Disk",
}


def _only_root(what: str) -> PveError:
    return PveError(403, f"Permission check failed ({what} is only allowed for root@pam)")


def check_rights(identity: Identity, vmid: int, keys: dict[str, Any], privileged: bool = False) -> None:
    """Raises PveError 403 unless the caller may set these keys. Some things need literally root@pam, never a token of it."""
    for key, value in keys.items():
        stem = re.sub(r"\d+$", "", key)
        if stem == "mp" and str(value).startswith("/") and not identity.root:
            raise _only_root("mount point type bind")
        if stem == "dev" and not identity.root:
            raise _only_root("configuring device passthrough")
        if key == "hookscript" and not identity.root:
            raise _only_root("changing the hookscript")
        if key == "features" and not identity.root:
            if privileged:
                raise _only_root("changing feature flags for privileged container")
            if set(properties(str(value)) if value else ()) - {"nesting"}:
                raise _only_root("changing feature flags (except nesting)")
        right = _RIGHT_OF.get(key) or {"net": "VM.Config.Network", "mp": "VM.Config.Disk", "unused": "VM.Config.Disk"}.get(stem, "VM.Config.Options")
        identity.require(f"/vms/{vmid}", right)


def digest(container: LabContainer) -> str:
    """SHA-1 over everything that the configuration file would hold."""
    held = [container.lock, container.template, container.config, container.snapshots]
    return hashlib.sha1(json.dumps(held, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def described(container: LabContainer, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as the API shows it: a description ends with a line feed, since the file keeps it as comment lines."""
    shown = dict(config)
    if shown.get("description"):
        shown["description"] = str(shown["description"]).rstrip("\n") + "\n"
    if container.template:
        shown["template"] = 1
    return shown


def disk_bytes(config: dict[str, Any]) -> int:
    """Size of the root file system, bytes."""
    return size_bytes(properties(str(config.get("rootfs", "x,size=4G"))).get("size", "4G"))


def storage_of(config: dict[str, Any]) -> str:
    return str(config.get("rootfs", "local-lvm:")).partition(":")[0]
