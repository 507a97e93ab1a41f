"""The game's systemd unit: :class:`zlh_agent.unit.Unit`. Built by ``__main__``.

``systemctl`` and ``journalctl`` are asked with arguments only, never through a shell; the end of a process is told by a pidfd, so that nothing
is polled while the game runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
from pathlib import Path

from zlh_agent.unit import CannotStart, Exit, Look, UnitError

#: Seconds for systemctl and journalctl.
ANSWER_S = 20.0
#: Seconds between two looks at a unit whose main process is not known.
LOOK_S = 0.5
#: Bytes of output that are kept, the last ones.
OUTPUT = 262_144
#: Characters of one line of output.
LINE = 500
#: Bytes that a pipe holds at most.
PIPE = 1_048_576
_PROPERTIES = "LoadState,ActiveState,MainPID,Result,ExecMainCode,ExecMainStatus,InvocationID,ExecMainStartTimestampMonotonic,Job"
_EXITED = "1"  # CLD_EXITED; what is neither 0 nor this ended by a signal
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"}


class SystemdUnit:
    """``console`` is the FIFO of the unit's socket."""

    def __init__(self, name: str, console: Path) -> None:
        self._name, self._console = name, console

    async def look(self) -> Look:
        code, out, err = await run("systemctl", "show", self._name, f"--property={_PROPERTIES}")
        said = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
        state = said.get("ActiveState")
        if code != 0 or not state:
            raise UnitError(f"systemctl show {self._name}: {err or f'exit code {code}'}")
        active = state not in ("inactive", "failed") or _number(said, "Job") > 0  # between the halves of a restart by hand it is neither
        return Look(
            loaded=said.get("LoadState") == "loaded",
            active=active,
            pid=_number(said, "MainPID") or None,
            run=said.get("InvocationID", ""),
            since=_number(said, "ExecMainStartTimestampMonotonic") / 1e6,
            exit=None if active else _exit(said),
        )

    async def start(self) -> None:
        await run("systemctl", "reset-failed", self._name)  # a start that was tried too often is refused until then
        code, _, err = await run("systemctl", "start", self._name, timeout_s=4 * ANSWER_S)
        if code != 0:
            raise CannotStart(err or f"systemctl start {self._name}: exit code {code}")

    async def signal(self, number: signal.Signals) -> None:
        code, _, err = await run("systemctl", "kill", f"--signal={number.name}", self._name)
        if code != 0 and (await self.look()).active:
            raise UnitError(f"systemctl kill {self._name}: {err}")

    async def ended(self, look: Look) -> None:
        now = look
        while now.active and now.run == look.run and now.pid is None:
            await asyncio.sleep(LOOK_S)
            now = await self.look()
        if not now.active or now.run != look.run or now.pid is None:
            return
        try:
            descriptor = os.pidfd_open(now.pid)
        except ProcessLookupError:
            return
        except OSError as error:
            raise UnitError(f"the end of process {now.pid} cannot be watched: {error.strerror}") from error
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            again = await self.look()  # the number may have gone to a stranger before we held it
            if not again.active or again.run != look.run or again.pid != now.pid:
                return
            try:
                loop.add_reader(descriptor, over.set)
            except OSError as error:
                raise UnitError(f"the end of process {now.pid} cannot be watched: {error.strerror}") from error
            await over.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def console(self, line: str) -> bool:
        try:
            descriptor = os.open(self._console, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return stat.S_ISFIFO(os.fstat(descriptor).st_mode) and os.write(descriptor, f"{line}\n".encode()) > 0
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            descriptor = os.open(self._console, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                for _ in range(PIPE // 65_536):  # and no more: somebody may go on writing
                    if not (stat.S_ISFIFO(os.fstat(descriptor).st_mode) and os.read(descriptor, 65_536)):
                        break
            finally:
                os.close(descriptor)

    async def tail(self, run_id: str, lines: int) -> tuple[str, ...]:
        if not run_id:
            return ()
        await run("journalctl", "--sync")
        code, out, err = await run("journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={lines}", f"_SYSTEMD_INVOCATION_ID={run_id}")
        if code != 0:
            raise UnitError(f"journalctl: {err or f'exit code {code}'}")
        return tuple(_printable(line) for line in out.splitlines()[-lines:])

    async def shutting_down(self) -> bool:
        _, out, _ = await run("systemctl", "is-system-running")  # its exit code says no more
        return out.strip() == "stopping"


async def run(*command: str, timeout_s: float = ANSWER_S) -> tuple[int, str, str]:
    """``(exit code, output, last line of the errors)``. Raises UnitError where there is no end or no such program."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=_ENVIRONMENT
        )
    except OSError as error:
        raise UnitError(f"{command[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await _over(process)
    except TimeoutError as error:
        raise UnitError(f"{' '.join(command[:2])}: no answer within {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await _over(process)  # it is not waited for in vain only if what it wrote is read
    last = err.decode(errors="replace").strip().splitlines()
    return process.returncode or 0, out.decode(errors="replace"), _printable(last[-1]) if last else ""


async def _over(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    out, err, _ = await asyncio.gather(_end_of(process.stdout), _end_of(process.stderr), process.wait())
    return out, err


async def _end_of(stream: asyncio.StreamReader | None) -> bytes:
    """The last :data:`OUTPUT` bytes: what a game prints may have no end."""
    kept = b""
    while stream is not None and (more := await stream.read(OUTPUT)):
        kept = (kept + more)[-OUTPUT:]
    return kept


def _exit(said: dict[str, str]) -> Exit | None:
    code, status, oom = said.get("ExecMainCode", "0"), _number(said, "ExecMainStatus"), said.get("Result") == "oom-kill"
    if code == "0":
        return Exit(oom=oom) if oom else None
    return Exit(code=status, oom=oom) if code == _EXITED else Exit(signal=status, oom=oom)


def _number(said: dict[str, str], name: str) -> int:
    text = said.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else " " for c in line[:LINE]).rstrip()
