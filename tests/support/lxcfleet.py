"""A lab of real containers as a program, as ``zlh lab up --fleet lxc`` starts it, and proxmoxer for its face."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxmoxer import ProxmoxAPI

from flows.lab import launch

PROJECT = Path(__file__).parents[2]
#: For tests that need no artifacts: building wares takes npm.
PARTS = ["proxmox", "agents", "bridge", "dns", "discord", "node"]


def until(condition: Callable[[], Any], deadline_s: float = 30.0) -> Any:
    """What the condition finally gives."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
    return found


@dataclass
class Fleet:
    """A running lab, and what a test does with it."""

    state: launch.State
    api: Any = field(repr=False)

    @property
    def network(self) -> str:
        """First three parts of the addresses."""
        return str(self.state.config["lxc"]["network"]).rpartition(".")[0]

    def done(self, upid: str, deadline_s: float = 120.0) -> str:
        """A task's exit status."""
        node = upid.split(":")[1]

        def ended() -> str | None:
            status = self.api.nodes(node).tasks(upid).status.get()
            return str(status["exitstatus"]) if status["status"] == "stopped" else None

        return str(until(ended, deadline_s))

    def log(self, upid: str) -> list[str]:
        return [line["t"] for line in self.api.nodes(upid.split(":")[1]).tasks(upid).log.get(limit=0)]

    def container(self, vmid: int, *, node: str = "pve1", start: bool = True) -> Any:
        """A clone with an address of its own (the VMID's last two digits), as proxmoxer's resource."""
        template = 9000 if node == "pve1" else 9010
        assert self.done(self.api.nodes(node).lxc(template).clone.post(newid=vmid, full=1, hostname=f"t{vmid}")) == "OK"
        container = self.api.nodes(node).lxc(vmid)
        container.config.put(net0=f"name=eth0,bridge=vmbr0,ip={self.address(vmid)}/24,gw={self.network}.1", memory=256, tags="zlh")
        if start:
            assert self.done(container.status.start.post()) == "OK"
        return container

    def address(self, vmid: int) -> str:
        return f"{self.network}.{10 + vmid % 100}"

    def ssh(
        self, command: str, *, address: str = "127.0.0.1", stdin: bytes = b"", user: str | None = None, key: str | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """A command on a node, as the product's own lock holder reaches it."""
        return subprocess.run(self.ssh_argv(command, address=address, user=user, key=key), input=stdin, capture_output=True, timeout=60, check=False)

    def ssh_argv(self, command: str, *, address: str = "127.0.0.1", user: str | None = None, key: str | None = None) -> list[str]:
        node = self.state.endpoints["node"]
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "GlobalKnownHostsFile=/dev/null"]
        options.append(f"UserKnownHostsFile={node['known_hosts']}")
        flags = [word for option in options for word in ("-o", option)]
        return ["ssh", "-T", *flags, "-i", key or node["private_key"], "-p", node["port"], f"{user or node['user']}@{address}", command]

    def inside(self, vmid: int, command: str, *, address: str = "127.0.0.1") -> str:
        """Standard output of a shell command in a container, by its node."""
        ended = self.ssh(f"sudo -n /usr/sbin/pct exec {vmid} -- /bin/sh -s", address=address, stdin=command.encode())
        assert ended.returncode == 0, ended.stderr.decode()
        return ended.stdout.decode().strip()


def client(state: launch.State) -> Any:
    token, ends = state.config["proxmox"]["tokens"][0], state.endpoints["proxmox"]
    secret = {"user": token["user"], "token_name": token["name"], "token_value": token["secret"]}
    return ProxmoxAPI(ends["address"], verify_ssl=ends["ca_file"], timeout=60, **secret)


@contextmanager
def running(directory: Path, **overrides: Any) -> Iterator[Fleet]:
    """Ended at the end, whatever happened."""
    try:
        state = launch.up(directory, project_dir=PROJECT, fleet="lxc", overrides={"parts": PARTS, **overrides})
        fleet = Fleet(state, client(state))
        try:
            yield fleet
        finally:
            fleet.api._store["session"].close()
    finally:
        launch.down(directory)


def processes_naming(text: str) -> list[str]:
    """Command lines of living processes with ``text`` in them, or in their namespaces' mounts."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            state = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            texts = [Path("/proc", entry, name).read_bytes().decode(errors="replace") for name in ("cmdline", "mountinfo")]
        except OSError:
            continue
        if state not in "ZX" and any(text in part for part in texts):
            found.append(texts[0].replace("\0", " "))
    return found


def processes_with(*words: str) -> list[int]:
    """Processes whose arguments hold each word, in one of them."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                arguments = Path("/proc", entry, "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "python" in arguments[0] and all(any(word in argument for argument in arguments) for word in words):
                found.append(int(entry))
    return found
