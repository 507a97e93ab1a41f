"""How a play reaches its host: by SSH once the container trusts us, through its node before that, or locally in tests.

Each reach fills the play's private directory, and says what goes into the inventory, into Ansible's environment, and which command holds
the lock on the target for the whole play. Host keys are always compared with known ones: an unknown one ends the play.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from flows.domain.ports import Play
from flows.errors import MisconfiguredSetting
from flows.settings import AnsibleSettings

#: Where the target keeps the lock that one play holds: out of reach for whoever is not root there.
LOCK_FILE = "/root/.zlh-play.lock"
LOCK_WAIT_S = 30.0
PCT = "/usr/sbin/pct"


class Reach(Protocol):
    def fill(self, directory: Path, play: Play) -> None:
        """Writes what the connection needs into the play's private directory. Raises MisconfiguredSetting."""

    def host(self, directory: Path, play: Play) -> dict[str, object]:
        """Variables of the host in the inventory."""

    def environment(self, directory: Path) -> dict[str, str]:
        """What Ansible sees on top of its own."""

    def lock(self, directory: Path, play: Play) -> list[str] | None:
        """Prints ``locked`` once it holds the lock, and holds it until its standard input ends. None: there is no lock."""


def _lock_command(play: Play) -> str:
    wait = max(1, int(min(LOCK_WAIT_S, play.timeout_s)))
    return f"flock -w {wait} {LOCK_FILE} sh -c 'echo locked; exec cat'"


@dataclass(frozen=True)
class Direct:
    """SSH as root. ``keys`` are the host's own by type; None: the user's own known_hosts decides."""

    settings: AnsibleSettings
    keys: Mapping[str, str] | None

    def fill(self, directory: Path, play: Play) -> None:
        if self.keys is not None:
            lines = "".join(f"{play.server.address} {kind} {key}\n" for kind, key in self.keys.items())
            write_text(directory / "known_hosts", lines)

    def host(self, directory: Path, play: Play) -> dict[str, object]:
        host: dict[str, object] = {
            "ansible_host": play.server.address,
            "ansible_user": "root",
            "ansible_ssh_common_args": " ".join(self._options(directory)),
        }
        if self.settings.private_key is not None:
            host["ansible_ssh_private_key_file"] = str(self.settings.private_key.resolve())
        return host

    def environment(self, directory: Path) -> dict[str, str]:
        return {}

    def lock(self, directory: Path, play: Play) -> list[str]:
        key = ["-i", str(self.settings.private_key.resolve())] if self.settings.private_key else []
        return ["ssh", "-T", *self._options(directory), *_alive(), *key, f"root@{play.server.address}", _lock_command(play)]

    def _options(self, directory: Path) -> list[str]:
        options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]
        if self.keys is not None:
            options += ["-o", f"UserKnownHostsFile={directory / 'known_hosts'}", "-o", "GlobalKnownHostsFile=/dev/null"]
        if self.settings.private_key is not None:
            options += ["-o", "IdentitiesOnly=yes"]
        return options


@dataclass(frozen=True)
class ThroughNode:
    """``community.proxmox.proxmox_pct_remote``: SSH to the node as a user who may run ``pct`` by sudo, and ``pct exec`` there.

    The plugin reads ``~/.ssh/known_hosts`` alone, so the play has a home of its own in which that file names the nodes. Its answer to an
    unknown key is a question that an empty answer accepts, but for "persistent" connections, where it refuses: they are declared such.
    """

    settings: AnsibleSettings
    entrance: str = field(default="127.0.0.1")  # address of the API's node, for nodes without an address of their own

    def fill(self, directory: Path, play: Play) -> None:
        known, key = self.settings.node_known_hosts, self.settings.private_key
        if key is None:
            raise MisconfiguredSetting("ZLH_ANSIBLE__PRIVATE_KEY", why="is not set", remedy="name the controller's SSH private key")
        remedy = "put the nodes' host keys there, like `ssh-keyscan -t ed25519 NODE`, each compared with the node's own console"
        if known is None:
            raise MisconfiguredSetting("ZLH_ANSIBLE__NODE_KNOWN_HOSTS", why="is not set: the node could not be told from another", remedy=remedy)
        try:
            text = known.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise MisconfiguredSetting("ZLH_ANSIBLE__NODE_KNOWN_HOSTS", why=f"{known}: {error}", remedy=remedy) from error
        (directory / "home" / ".ssh").mkdir(parents=True, mode=0o700)
        write_text(directory / "home" / ".ssh" / "known_hosts", text)

    def host(self, directory: Path, play: Play) -> dict[str, object]:
        assert self.settings.private_key is not None
        return {
            "ansible_connection": "community.proxmox.proxmox_pct_remote",
            "ansible_host": self._address(play),
            "ansible_port": self.settings.node_port,
            "ansible_user": self.settings.node_user,
            "ansible_ssh_private_key_file": str(self.settings.private_key.resolve()),
            "ansible_become": False,  # `pct exec` is root already, and the node's user is nobody in the container
            "ansible_remote_tmp": "/root/.ansible/tmp",
            "proxmox_vmid": play.server.vmid,
        }

    def environment(self, directory: Path) -> dict[str, str]:
        return {
            "HOME": str(directory / "home"),
            "ANSIBLE_USE_PERSISTENT_CONNECTIONS": "1",
            "ANSIBLE_PARAMIKO_RECORD_HOST_KEYS": "0",
            "ANSIBLE_PARAMIKO_LOOK_FOR_KEYS": "0",
            "ANSIBLE_PARAMIKO_PTY": "0",
            "SSH_AUTH_SOCK": "",
        }

    def lock(self, directory: Path, play: Play) -> list[str]:
        assert self.settings.private_key is not None
        sudo = "" if self.settings.node_user == "root" else "sudo -n "
        known = directory / "home" / ".ssh" / "known_hosts"
        options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes"]
        options += ["-o", f"UserKnownHostsFile={known}", "-o", "GlobalKnownHostsFile=/dev/null", *_alive()]
        target = [
            "-p",
            str(self.settings.node_port),
            "-i",
            str(self.settings.private_key.resolve()),
            f"{self.settings.node_user}@{self._address(play)}",
        ]
        return ["ssh", "-T", *options, *target, f"{sudo}{PCT} exec {play.server.vmid:d} -- {_lock_command(play)}"]

    def _address(self, play: Play) -> str:
        """``pct`` knows the containers of its own node alone."""
        addresses = dict(entry.split("=", 1) for entry in self.settings.node_addresses)
        if not addresses:
            return self.entrance
        try:
            return addresses[play.server.node]
        except KeyError:
            raise MisconfiguredSetting(
                "ZLH_ANSIBLE__NODE_ADDRESSES", why=f"does not name {play.server.node}", remedy=f"add {play.server.node}=ADDRESS"
            ) from None


class Local:
    """This machine, in tests."""

    def fill(self, directory: Path, play: Play) -> None: ...

    def host(self, directory: Path, play: Play) -> dict[str, object]:
        return {"ansible_host": play.server.address, "ansible_connection": "local", "ansible_python_interpreter": sys.executable}

    def environment(self, directory: Path) -> dict[str, str]:
        return {}

    def lock(self, directory: Path, play: Play) -> list[str] | None:
        return None


def _alive() -> list[str]:
    return ["-o", "ServerAliveInterval=10", "-o", "ConnectTimeout=10"]


def write_text(path: Path, text: str) -> None:
    """A new file, its owner's alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
