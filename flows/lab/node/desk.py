"""Where a node's ``pct`` asks the lab: which containers there are, and commands in them with the caller's own standard streams.

A request is 4 bytes of length with three file descriptors (standard input, output, error), then JSON; the answer is JSON, ``code`` being
the exit status. Only root inside the node's namespaces can reach the socket. Messages are those of Proxmox's ``pct``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.lab.lxc import names, processes
from flows.lab.lxc.programs import PATH
from flows.lab.proxmox import guest
from flows.lab.serving import settle
from flows.lab.substance import SubstanceError
from flows.lab.world import LabContainer, World

log = logging.getLogger(__name__)
LIMIT = 4 << 20
#: What a lab's pct can do; the real one's other commands are refused as unknown ones.
COMMANDS = ("config", "exec", "list", "push", "status")
_PUSH = 'umask 077 && cat >"$1" && chmod "$2" "$1" && chown "$3" "$1"'


@dataclass
class Reply:
    code: int = 0
    out: str = ""
    err: str = ""

    def encode(self) -> bytes:
        return json.dumps({"code": self.code, "out": self.out, "err": self.err}).encode()


class PctError(Exception):
    """``pct`` ends with ``code`` and the text on its standard error."""

    def __init__(self, text: str, code: int = 255) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class _Options:
    """``--perms 0644`` and ``-perms 0644``, ``--perms=0644``; what follows ``--`` is left alone."""

    words: list[str] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)
    rest: list[str] | None = None

    @classmethod
    def parse(cls, arguments: Sequence[str], known: Sequence[str]) -> _Options:
        options, queue = cls(), list(arguments)
        while queue:
            word = queue.pop(0)
            if word == "--":
                options.rest = queue
                break
            if not word.startswith("-") or word == "-":
                options.words.append(word)
                continue
            name, equals, value = word.lstrip("-").partition("=")
            if name not in known:
                raise PctError(f"Unknown option: {name}\n400 unable to parse option")
            if not equals:
                if not queue:
                    raise PctError(f"Option {name} requires an argument\n400 unable to parse option")
                value = queue.pop(0)
            options.given[name] = value
        return options


class Desk:
    """One node's. Listens on ``path``, a Unix socket."""

    def __init__(self, node: str, directory: Path, path: Path, world: World) -> None:
        self.node, self.directory, self.path, self._world = node, directory, path, world
        self._listener: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self.count = 0

    async def open(self) -> None:
        """Raises OSError."""
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        above = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            listener.bind(f"/proc/self/fd/{above}/{self.path.name}")  # a path may be longer than a socket's address
        finally:
            os.close(above)
        self.path.chmod(0o600)
        listener.listen(128)
        self._listener = listener
        self._task = asyncio.create_task(self._accept(listener))

    async def close(self) -> None:
        await settle(self._task)
        for call in list(self._calls):
            await settle(call)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.path.unlink(missing_ok=True)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            call = asyncio.create_task(self._serve(connection))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _serve(self, connection: socket.socket) -> None:
        loop, streams = asyncio.get_running_loop(), list[int]()
        try:
            _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid != 0:
                return
            async with asyncio.timeout(10):
                request = await _receive(connection, streams)
            self.count += 1
            reply = await self._while_there(connection, self._answer(request, streams))
            for descriptor in streams:
                os.close(descriptor)
            streams.clear()
            if reply is not None:
                await loop.sock_sendall(connection, reply.encode())
        except (OSError, ValueError, KeyError, TimeoutError) as error:
            log.warning("pct on %s: %s", self.node, error)
        finally:
            for descriptor in streams:
                os.close(descriptor)
            connection.close()

    async def _while_there(self, connection: socket.socket, work: Any) -> Reply | None:
        """None: ``pct`` was ended meanwhile, and what it had started with it."""
        working = asyncio.create_task(work)
        watching = asyncio.create_task(asyncio.get_running_loop().sock_recv(connection, 1))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _answer(self, request: dict[str, Any], streams: Sequence[int]) -> Reply:
        arguments = [str(word) for word in request["arguments"]]
        try:
            if not arguments:
                raise PctError("ERROR: no command specified\nUSAGE: pct <COMMAND> [ARGS] [OPTIONS]")
            command, given = arguments[0], arguments[1:]
            if command not in COMMANDS:
                raise PctError(f"ERROR: unknown command 'pct {command}'\nUSAGE: pct <COMMAND> [ARGS] [OPTIONS]")
            if command == "list":
                return await self._list(given)
            vmid = given[0] if given else ""
            if not vmid.isascii() or not vmid.isdecimal() or not 100 <= int(vmid) <= 999_999_999:
                why = (
                    "not enough arguments" if not given else f"400 Parameter verification failed.\nvmid: type check ('integer') failed - got '{vmid}'"
                )
                raise PctError(f"{why}\npct {command} <vmid> [OPTIONS]")
            container = self._container(int(vmid))
            if command == "exec":
                return await self._exec(container, given[1:], streams, str(request.get("term", "")))
            if command == "push":
                return await self._push(container, given[1:], streams)
            if command == "status":
                running = await self._world.substance.running(container)
                return Reply(out=f"status: {'running' if running else 'stopped'}\n")
            shown = guest.described(container, container.config) | ({"lock": container.lock} if container.lock else {})
            return Reply(out="".join(f"{key}: {_encoded(key, value)}\n" for key, value in sorted(shown.items())))
        except PctError as error:
            return Reply(error.code, err=f"{error}\n")
        except SubstanceError as error:
            return Reply(255, err=f"{error}\n")

    def _container(self, vmid: int) -> LabContainer:
        container = self._world.containers.get(vmid)
        if container is None or container.node != self.node:
            raise PctError(f"Configuration file 'nodes/{self.node}/lxc/{vmid}.conf' does not exist", 2)
        return container

    async def _list(self, given: Sequence[str]) -> Reply:
        if given:
            raise PctError("400 too many arguments\npct list")
        form = "{:<10} {:<10} {:<12} {:<20}\n"
        rows = []
        for container in sorted(self._world.containers.values(), key=lambda c: c.vmid):
            if container.node == self.node:
                running = not container.template and await self._world.substance.running(container)
                name = str(container.config.get("hostname", f"CT{container.vmid}"))
                rows.append(form.format(container.vmid, "running" if running else "stopped", container.lock or "", name))
        return Reply(out="".join([form.format("VMID", "Status", "Lock", "Name"), *rows]) if rows else "")

    async def _exec(self, container: LabContainer, given: Sequence[str], streams: Sequence[int], term: str) -> Reply:
        options = _Options.parse(given, ("keep-env",))
        if not await self._world.substance.running(container):
            raise PctError(f"container '{container.vmid}' not running!")
        command = options.words if options.rest is None else options.rest
        if not command:
            raise PctError("missing command")
        return Reply(await self._attach(container, command, streams, term))

    async def _push(self, container: LabContainer, given: Sequence[str], streams: Sequence[int]) -> Reply:
        options = _Options.parse(given, ("perms", "user", "group"))
        if len(options.words) != 2:
            raise PctError("400 not enough arguments\npct push <vmid> <file> <destination> [OPTIONS]")
        if not await self._world.substance.running(container):
            raise PctError("can only push files to a running CT")
        perms = options.given.get("perms", "644")
        try:
            mode = int(perms, 16 if perms.startswith("0x") else 8)
        except ValueError:
            raise PctError(f"cannot parse permissions '{perms}'") from None
        owner = f"{options.given.get('user', '0')}:{options.given.get('group', '0')}"
        argv = ["/bin/sh", "-c", _PUSH, "sh", options.words[1], f"{mode & 0o7777:04o}", owner]
        return Reply(await self._attach(container, argv, streams, ""))

    async def _attach(self, container: LabContainer, argv: Sequence[str], streams: Sequence[int], term: str) -> int:
        """The exit status of a command that runs in the container with ``streams`` as its own. Ended with whoever waits for it."""
        sets = {"PATH": PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root", "LANG": "C.UTF-8", **({"TERM": term} if term else {})}
        attach = ["lxc-attach", "-P", str(names.home(self.directory) / "machines"), "-n", names.container_name(self.directory, container.vmid)]
        attach += ["--clear-env", *(word for key, value in sets.items() for word in ("-v", f"{key}={value}")), "--", *argv]
        # lxc-attach speaks to the terminal that controls its session, not to its standard streams, where these are one.
        on_terminal = os.isatty(streams[0])
        try:
            process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", "--", *(("setsid", "--ctty") if on_terminal else ()), *attach),
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                env={"PATH": PATH, **names.mark(self.directory)},
                start_new_session=not on_terminal,
            )
        except OSError as error:
            raise PctError(f"unable to run {shlex.join(argv[:1])}: {error}") from error
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                processes.end_tree(process.pid)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        await process.wait()
        return code if code >= 0 else 128 - code


def _encoded(key: str, value: Any) -> str:
    """A description is one line, with what would break it written as %XX."""
    if key != "description":
        return str(value)
    return "".join(c if c.isprintable() and c not in "%" else "".join(f"%{b:02X}" for b in c.encode()) for c in str(value))


async def _receive(connection: socket.socket, streams: list[int]) -> dict[str, Any]:
    """The request; its descriptors are added to ``streams``. Raises OSError or ValueError."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    ready: asyncio.Future[None] = loop.create_future()

    def set_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, set_ready)
    try:
        await ready
    finally:
        loop.remove_reader(connection)
    head, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    streams += descriptors
    if len(streams) != 3 or len(head) != 4:
        raise ValueError("a request comes with three streams")
    length, body = int.from_bytes(head, "big"), b""
    if length > LIMIT:
        raise ValueError("the request is too long")
    while len(body) < length:
        chunk = await loop.sock_recv(connection, length - len(body))
        if not chunk:
            raise ValueError("the request ends early")
        body += chunk
    request = json.loads(body)
    if not isinstance(request, dict):
        raise ValueError("the request is no object")
    return request
