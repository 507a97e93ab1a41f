"""Playbooks by Ansible, one host at a time. Called by provisioning's steps through the port :class:`flows.domain.ports.PlaybookRunner`.

ansible-runner works in a process of its own under :mod:`flows.clients.supervisor`, whose life line is a pipe from here: whatever becomes of
the flow, the playbook's whole process tree ends and its private directory goes. Secrets are in a 0600 file on tmpfs and nowhere else: not
in an argv, an environment, an artifact or a line of output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.clients.reach import LOCK_WAIT_S, Direct, Reach, ThroughNode, write_text
from flows.clients.supervisor import GRACE_S, MARKER, REAP_S, end_processes, marked
from flows.domain.ports import Play, PlayResult
from flows.domain.server import Server
from flows.errors import AmbiguousEffect, BadInput, Busy, DeadlineExceeded, MisconfiguredSetting, TaskFailed
from flows.settings import AnsibleSettings

#: Playbooks that reach the container through its node: before it trusts us, or when something in it is wrong.
THROUGH_NODE = frozenset({"bootstrap.yml", "restart_agent.yml"})
#: Longest line of the supervisor that is read, bytes.
MAX_LINE = 4_194_304
#: Seconds that a supervisor may take to end a tree before it is ended itself.
STOP_S = GRACE_S + REAP_S + 2.0
_PREFIX = "zlh-play-"
_PLAYBOOK = re.compile(r"[a-z0-9_]+\.yml")
_TEMPLATE = re.compile(r"\{\{|\{%|\{#")
#: Of our environment a playbook sees these alone: our own settings hold secrets.
_KEPT = ("HOME", "LANG", "LC_ALL", "LOGNAME", "SSH_AUTH_SOCK", "TZ", "USER")

HostKeys = Callable[[Server], Awaitable[Mapping[str, str]]]


class AnsibleRunner:
    """Implements :class:`flows.domain.ports.PlaybookRunner`.

    ``host_keys`` gives a server's SSH host keys by type (``{"ssh-ed25519": "AAAA…"}``); without it the user's own known_hosts decides.
    ``entrance`` is the address of the node that nodes without an address of their own are reached by; ``reach`` replaces both ways (tests).
    """

    def __init__(
        self, settings: AnsibleSettings, *, host_keys: HostKeys | None = None, entrance: str = "127.0.0.1", reach: Reach | None = None
    ) -> None:
        self._settings, self._host_keys = settings, host_keys
        self._entrance, self._given = entrance, reach
        self._project = settings.project_dir.resolve()
        self._stopping: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Waits for supervisors that are still ending a tree."""
        if self._stopping:
            await asyncio.wait(self._stopping)

    async def run(self, play: Play, on_event: Callable[[str], None] | None = None) -> PlayResult:
        """A play that Ansible ended is a result, failed or not.

        Raises DeadlineExceeded (time-out), Busy (another play holds the target's lock), AmbiguousEffect (the supervisor was killed or lost
        its lock), BadInput (no such playbook, or a value that would be a template), TaskFailed (Ansible could not be run at all).
        """
        what = f"play {play.playbook} on {play.server.name} ({play.server.address})"
        self._check(play)
        reach = await self._reach(play)
        await asyncio.to_thread(sweep, self._settings.scratch_dir)
        directory = self._prepare(play, reach)  # in place: a cancellation must not come between the directory and its removal
        try:
            end = await self._supervised(what, play, directory, reach, on_event or (lambda _: None))
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, True)
        return _result(what, play, end)

    def _check(self, play: Play) -> None:
        if not _PLAYBOOK.fullmatch(play.playbook) or not (self._project / "playbooks" / play.playbook).is_file():
            raise BadInput("playbook", play.playbook, why=f"is not in {self._project / 'playbooks'}", remedy="check ZLH_ANSIBLE__PROJECT_DIR")
        for name in (*_templates(play.variables), *_templates(play.secrets)):
            raise BadInput("variable", name, why="its value would be a template, which Ansible would execute")

    async def _reach(self, play: Play) -> Reach:
        if self._given is not None:
            return self._given
        if play.playbook in THROUGH_NODE:
            return ThroughNode(self._settings, self._entrance)
        return Direct(self._settings, await self._host_keys(play.server) if self._host_keys else None)

    def _prepare(self, play: Play, reach: Reach) -> Path:
        """The private directory: variables, secrets, inventory, known hosts; each file 0600."""
        try:
            directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._settings.scratch_dir))
        except OSError as error:
            raise MisconfiguredSetting("ZLH_ANSIBLE__SCRATCH_DIR", why=str(error), remedy="name a directory on tmpfs") from error
        try:
            self._fill(directory, play, reach)
        except BaseException:  # whatever it is, secrets must not stay; it is raised on
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return directory

    def _fill(self, directory: Path, play: Play, reach: Reach) -> None:
        _write(directory / "variables.json", dict(play.variables))
        _write(directory / "secrets.json", dict(play.secrets))
        _write(directory / "hidden.json", _spellings(play.secrets.values()))
        for name in ("inventory", "tmp", "cp"):
            (directory / name).mkdir(mode=0o700)
        reach.fill(directory, play)
        _write(directory / "inventory" / "hosts.json", _inventory(play, reach.host(directory, play)))

    def _order(self, play: Play, directory: Path, reach: Reach) -> dict[str, Any]:
        return {
            "directory": str(directory),
            "project": str(self._project),
            "playbook": f"playbooks/{play.playbook}",
            "inventory": str(directory / "inventory"),
            "limit": play.server.hostname,
            "extra": [str(directory / "variables.json"), str(directory / "secrets.json")],
            "timeout_s": play.timeout_s,
            "hidden_file": str(directory / "hidden.json"),
            "lock": reach.lock(directory, play),
            "lock_wait_s": min(LOCK_WAIT_S, play.timeout_s),
            "env": {**self._ansible_env(play, directory), **reach.environment(directory)},
        }

    def _ansible_env(self, play: Play, directory: Path) -> dict[str, str]:
        config = self._project / "ansible.cfg"
        return {
            **({"ANSIBLE_CONFIG": str(config)} if config.is_file() else {}),
            # With secrets nothing of a task's result is shown; without, a failure says why.
            **({"ANSIBLE_NO_LOG": "1"} if play.secrets else {}),
            "ANSIBLE_LOCAL_TEMP": str(directory / "tmp"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(directory / "cp"),
            "ANSIBLE_HOST_KEY_CHECKING": "1",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "ANSIBLE_NOCOLOR": "1",
        }

    async def _supervised(self, what: str, play: Play, directory: Path, reach: Reach, on_event: Callable[[str], None]) -> Mapping[str, Any]:
        env = {key: value for key, value in os.environ.items() if key in _KEPT} | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            MARKER: directory.name,
        }
        env.setdefault("LANG", "C.UTF-8")
        with _log(directory).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "flows.clients.supervisor"),
                cwd=self._project,
                env=env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=MAX_LINE,
            )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(self._order(play, directory, reach)).encode() + b"\n")
            with contextlib.suppress(ConnectionError):  # it died at once: the missing last line says so
                await process.stdin.drain()
            # The supervisor keeps the deadline; this one only notices a supervisor that hangs.
            async with asyncio.timeout(play.timeout_s + 2 * STOP_S):
                return await _listen(what, process, directory, on_event)
        except TimeoutError as error:
            raise DeadlineExceeded(what, why=f"its supervisor did not answer {2 * STOP_S:g} s after the time-out") from error
        finally:
            stopping = asyncio.create_task(_stop(process, directory.name))
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)
            await asyncio.shield(stopping)  # a second cancellation leaves it at work


def _inventory(play: Play, reached: Mapping[str, object]) -> dict[str, Any]:
    server = play.server
    host = {
        "zlh_server_id": server.id,
        "zlh_server_name": server.name,
        "zlh_vmid": server.vmid,
        "zlh_node": server.node,
        **reached,
    }
    return {"all": {"children": {"zlh": {"children": {f"zlh_{server.ctype.value}": {"hosts": {server.hostname: host}}}}}}}


async def _listen(what: str, process: asyncio.subprocess.Process, directory: Path, on_event: Callable[[str], None]) -> Mapping[str, Any]:
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            event = json.loads(line)
            if event.get("event") == "end":
                return dict(event)
            on_event(str(event.get("text", "")))
    except ValueError as error:  # not JSON, or longer than MAX_LINE
        raise AmbiguousEffect(what, why="its supervisor sent rubbish", remedy="look before acting again") from error
    said = ""
    with contextlib.suppress(OSError):
        said = _log(directory).read_text(errors="replace").strip()[-500:]
    raise AmbiguousEffect(what, why=f"its supervisor ended without a result {said}".strip(), remedy="look before acting again")


def _log(directory: Path) -> Path:
    """What the supervisor itself has to say, a missing module say; Ansible's output does not go there."""
    return directory / "supervisor.log"


async def _stop(process: asyncio.subprocess.Process, marker: str) -> None:
    """Ends the supervisor by its life line, and whatever it left if it was killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_S):
            clean = await process.wait() in (0, 1)
    except TimeoutError:
        clean = False
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if not clean:
        await asyncio.to_thread(end_processes, lambda: marked(marker))


def _result(what: str, play: Play, end: Mapping[str, Any]) -> PlayResult:
    status, tail = end["status"], str(end["tail"])
    if status == "timeout":
        raise DeadlineExceeded(what, why=f"not done after {play.timeout_s:g} s", remedy="the play was ended; look before acting again")
    if status == "locked":
        raise Busy(what, why=tail, remedy="wait for the other play on this host", retry_after=LOCK_WAIT_S)
    if status == "lock_lost":
        raise AmbiguousEffect(what, why=tail, remedy="look before acting again")
    if status == "error":
        raise TaskFailed(what, why=tail, remedy="check the installation of ansible on this machine")
    counts = end["hosts"].values()
    return PlayResult(
        ok=status == "successful",
        changed=any(host.get("changed") for host in counts),
        unreachable=status == "unreachable" or any(host.get("dark") for host in counts),
        facts=end["facts"],
        tail="" if status == "successful" else tail,
        failed_task=str(end["failed_task"]),
    )


def sweep(scratch: Path, *, older_than_s: float = 60.0) -> None:
    """Removes what plays left whose supervisor was killed too: private directories that no living process names."""
    with contextlib.suppress(OSError):
        for directory in scratch.glob(f"{_PREFIX}*"):
            entry = directory.lstat()
            ours = directory.is_dir() and not directory.is_symlink() and entry.st_uid == os.getuid()
            if ours and time.time() - entry.st_mtime > older_than_s and not marked(directory.name):
                shutil.rmtree(directory, ignore_errors=True)


def _templates(values: object, path: str = "") -> list[str]:
    """Names of the values, at any depth, that hold a template's opening."""
    if isinstance(values, str):
        return [path] if _TEMPLATE.search(values) else []
    if isinstance(values, Mapping):
        return [name for key, value in values.items() for name in (*_templates(value, f"{path}.{key}".strip(".")), *_templates(str(key), path))]
    if isinstance(values, Sequence):
        return [name for number, value in enumerate(values) for name in _templates(value, f"{path}[{number}]")]
    return []


def _spellings(secrets: Any) -> list[str]:
    """How a secret may appear in output: itself, its lines, and both as JSON spells them. Very short ones would black out everything."""
    found: set[str] = set()
    for secret in secrets:
        for text in (secret, *secret.splitlines()):
            if len(text.strip()) >= 8:
                found |= {text, text.strip(), json.dumps(text)[1:-1]}
    return sorted(found)


def _write(path: Path, value: object) -> None:
    try:
        write_text(path, json.dumps(value))
    except TypeError as error:
        raise BadInput("variables", type(value).__name__, why=f"cannot be written as JSON: {error}") from error
