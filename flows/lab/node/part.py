"""The part: keys, and for each node its desk and its SSH server in namespaces of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.errors import DeadlineExceeded, Permanent
from flows.lab.config import LabConfig, NodeConfig
from flows.lab.faults import Faults
from flows.lab.lxc import names, processes
from flows.lab.needs import PATH
from flows.lab.node.desk import Desk
from flows.lab.serving import free_port
from flows.lab.world import World

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
READY_S, FREE_S = 20.0, 2.0


async def start(config: LabConfig, world: World, faults: Faults) -> NodePart:
    """Every node answers by SSH when it returns. Raises OSError (port taken), DeadlineExceeded, Permanent."""
    part = NodePart(config, world)
    try:
        await part.open()
    except BaseException:
        await part.stop()
        raise
    return part


@dataclass
class _Node:
    config: NodeConfig
    home: Path
    desk: Desk
    process: asyncio.subprocess.Process | None = None
    host_key: str = ""  # the public one


class NodePart:
    """``inspect()`` shows how often each node's ``pct`` was called."""

    name = "node"

    def __init__(self, config: LabConfig, world: World) -> None:
        self._config, self._ssh = config, config.node
        self.directory = config.directory.resolve() / "node"
        self.key = (config.node.key or config.directory / "controller_ed25519").resolve()
        self.port = config.node.port or free_port()
        self.known_hosts = self.directory / "known_hosts"
        self._nodes = [
            _Node(node, home := self.directory / node.name, Desk(node.name, config.directory, home / "desk", world)) for node in config.proxmox.nodes
        ]

    @property
    def endpoints(self) -> Mapping[str, str]:
        return {
            "port": str(self.port),
            "user": self._ssh.user,
            "addresses": ",".join(f"{node.config.name}={node.config.address}" for node in self._nodes),
            "known_hosts": str(self.known_hosts),
            "private_key": str(self.key),
        }

    def inspect(self) -> dict[str, Any]:
        return {"calls": {node.config.name: node.desk.count for node in self._nodes}}

    async def open(self) -> None:
        if len({node.config.address for node in self._nodes}) != len(self._nodes):
            raise Permanent("starting the nodes' SSH servers", why="two nodes have one address", remedy="proxmox.nodes: 127.0.0.1, 127.0.0.2, …")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        await _key(self.key, "zlh-lab-controller")
        for node in self._nodes:
            node.home.mkdir(mode=0o700, exist_ok=True)
            node.host_key = await _key(node.home / "host_ed25519", node.config.name)
        lines = (f"[{n.config.address}]:{self.port} {' '.join(n.host_key.split()[:2])}\n" for n in self._nodes)
        self.known_hosts.write_text("".join(lines))
        for node in self._nodes:
            await _claim(node.config.address, self.port)
            await node.desk.open()
            await self._serve(node)

    async def restart(self) -> None:
        """As a restart of every node's SSH server that ends its sessions, too."""
        for node in self._nodes:
            await self._end(node)
            await self._serve(node)

    async def stop(self) -> None:
        for node in self._nodes:
            await self._end(node)
            await node.desk.close()

    async def _serve(self, node: _Node) -> None:
        spec = {
            "name": node.config.name,
            "address": node.config.address,
            "port": self.port,
            "user": self._ssh.user,
            "pct": str(HERE / "pct.py"),
            "desk": str(node.home / "desk"),
            "host_key": str(node.home / "host_ed25519"),
            "authorized_key": f"{self.key}.pub",
            "outside": os.readlink("/proc/self/ns/mnt"),  # where it must not be when it lays files over the machine's
        }
        file = node.home / "spec.json"
        file.write_text(json.dumps(spec))
        with (node.home / "log").open("ab") as output:
            # Killed with the lab, and every session with it: the server is the first process of a process namespace.
            node.process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount", "--propagation", "private", "--uts", "--pid", "--fork"),
                *("--kill-child=KILL", sys.executable, "-IS", str(HERE / "inside.py"), str(file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"PATH": PATH, **names.mark(self._config.directory)},
                start_new_session=True,
            )
        await self._answers(node)

    async def _answers(self, node: _Node) -> None:
        what = f"starting the SSH server of {node.config.name} on {node.config.address}:{self.port}"
        process = node.process
        assert process is not None
        try:
            async with asyncio.timeout(READY_S):
                while True:
                    if process.returncode is not None:
                        raise Permanent(what, why=f"it ended: {_tail(node.home / 'log')}", remedy=f"see {node.home / 'log'}")
                    with contextlib.suppress(OSError):
                        reader, writer = await asyncio.open_connection(node.config.address, self.port)
                        try:
                            if (await reader.readline()).startswith(b"SSH-"):
                                return
                        finally:
                            writer.close()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise DeadlineExceeded(what, why=f"no answer after {READY_S:g} s: {_tail(node.home / 'log')}") from None

    async def _end(self, node: _Node) -> None:
        process, node.process = node.process, None
        if process is None or process.returncode is not None:
            return
        processes.end_tree(process.pid)
        await process.wait()


async def _claim(address: str, port: int) -> None:
    """Returns when nobody listens there; a predecessor that was just killed gets a moment. Raises OSError, as for any port that is taken."""
    deadline = time.monotonic() + FREE_S
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                if time.monotonic() > deadline:
                    raise
            else:
                return
        await asyncio.sleep(0.05)


async def _key(path: Path, comment: str) -> str:
    """An Ed25519 key pair, made when missing. Returns the public key. Raises Permanent."""
    public = path.with_name(f"{path.name}.pub")
    if not (path.exists() and public.exists()):  # noqa: ASYNC240 - once, before anything is served
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        for leftover in (fresh, fresh.with_name(f"{fresh.name}.pub")):
            leftover.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(fresh)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate()
        if process.returncode != 0:
            raise Permanent(f"making the key {path}", why=err.decode(errors="replace").strip(), remedy="apt-get install openssh-client")
        fresh.with_name(f"{fresh.name}.pub").replace(public)
        fresh.replace(path)
    return public.read_text().strip()


def _tail(path: Path) -> str:
    try:
        return " / ".join(path.read_text(errors="replace").splitlines()[-3:])
    except OSError:
        return ""
