"""One container: its directory ``<directory>/zlh-containers/machines/<name>`` and what can be done to it, by lxc's own programs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from flows.lab.lxc import layers, names, processes, ruins
from flows.lab.lxc.cgroups import Limits
from flows.lab.lxc.programs import PATH, Programs, tail
from flows.lab.substance import Ended, SubstanceError

START_S = 60.0
STOP_S = 30.0
_POLL_S = 0.02
_SIGRTMIN = 34  # as glibc has it: systemd's signal to power off is three above


def attach(directory: Path, vmid: int) -> list[str]:
    """The command that, followed by another, runs that one in the container: as root, with a clean environment. It ends with the other's code."""
    sets = [word for value in (f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb") for word in ("-v", value)]
    above = names.home(directory) / "machines"
    return ["lxc-attach", "-P", str(above), "-n", names.container_name(directory, vmid), "--clear-env", *sets, "--"]


class Machine:
    """Its state is the system's: running is whether its lxc monitor lives."""

    def __init__(self, directory: Path, vmid: int, programs: Programs) -> None:
        self.directory, self.vmid, self.programs = directory, vmid, programs
        self.name = names.container_name(directory, vmid)
        self.above = names.home(directory) / "machines"
        self.home = self.above / self.name
        self.console = self.home / "console"
        self.copying = asyncio.Lock()
        self._monitor: processes.Process | None = None

    # What it is made of

    @property
    def exists(self) -> bool:
        return (self.home / "upper").is_dir()

    def snapshot(self, name: str) -> Path:
        """Directory of a snapshot. Raises SubstanceError for a name that none can have."""
        if not names.usable_snapshot(name):
            raise SubstanceError(f"snapshot {name[:50]!r}: no name of a snapshot · letters, digits, - and _, a letter first")
        return self.home / "snapshots" / name

    async def copy(self, target: Path) -> None:
        """What it holds now goes to the layer ``target``. A running one stands still meanwhile: the copy is of one moment."""
        async with self.copying, self._still():
            await layers.copy(self.home, target, self.programs)

    @contextlib.asynccontextmanager
    async def _still(self) -> AsyncIterator[None]:
        if not self.running:
            yield
            return
        try:
            await self._lxc("freeze", timeout_s=STOP_S)
            yield
        finally:
            if self.running:
                await asyncio.shield(self._thaw())

    async def _thaw(self) -> None:
        try:
            await self._lxc("unfreeze", timeout_s=STOP_S)
        except SubstanceError:  # a container that stands still for good would be worse than a roundabout way
            await asyncio.to_thread(ruins.thaw, self.name)
            raise

    async def remove(self) -> None:
        await self.stop()
        if self.home.exists():
            trash = self.above / f".gone-{self.name}-{time.monotonic_ns()}"
            self.home.rename(trash)
            await layers.discard(trash)

    # Its life

    @property
    def running(self) -> bool:
        if self._monitor is None:
            return False
        now = processes.find(self._monitor.pid)
        if now is None or now.dead or now.started != self._monitor.started:
            self._monitor = None
            return False
        return True

    async def start(self, configuration: str) -> None:
        """Returns when its init runs. What a failed start left is ended."""
        if self.running:
            return
        log = self.home / "log"
        for file in (log, self.console):
            file.unlink(missing_ok=True)
        (self.home / "config").write_text(configuration)
        try:
            ended = await self.programs.run(
                "lxc-start", "-P", self.above, "-n", self.name, "-d", "-l", "ERROR", "-o", log, timeout_s=START_S, capture=False
            )
            if ended.code != 0:
                why = self._last(log) or f"lxc-start ended with {ended.code}"
                raise SubstanceError(f"CT {self.vmid} does not start: {why} {self._last(self.console)}".rstrip())
            self._monitor = await self._find_monitor()
        except BaseException:
            await asyncio.shield(asyncio.to_thread(ruins.end_container, self.directory, self.vmid))
            raise

    async def _init(self) -> int | None:
        out = (await self.programs.run("lxc-info", "-P", self.above, "-n", self.name, "-pH", timeout_s=10)).out.strip()
        return int(out) if out.isdigit() and int(out) > 0 else None

    async def _find_monitor(self) -> processes.Process:
        init = await self._init()
        process = processes.find(init) if init else None
        monitor = processes.find(process.parent) if process else None
        if monitor is None:
            raise SubstanceError(f"CT {self.vmid} ended as soon as it was started: {self._last(self.console)}")
        return monitor

    @staticmethod
    def _last(file: Path) -> str:
        return tail(file.read_bytes()) if file.exists() else ""

    async def stop(self) -> None:
        """At once."""
        if not self.running:
            return
        with contextlib.suppress(SubstanceError):  # what follows does without it
            await self._lxc("stop", "-k", timeout_s=STOP_S)
        if not await self._ended(2.0):
            await asyncio.to_thread(ruins.end_container, self.directory, self.vmid)

    async def shutdown(self, timeout_s: float) -> bool:
        """By its init. The signal is repeated: an init that has just begun does not hear it yet."""
        deadline = time.monotonic() + timeout_s
        while self.running:
            if (init := await self._init()) is not None:
                processes.send(init, _SIGRTMIN + 3)
            left = deadline - time.monotonic()
            if await self._ended(min(1.0, left)):
                break
            if left <= 0:
                return False
        return True

    async def _ended(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.running:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def limit(self, limits: Sequence[Limits]) -> None:
        """Live. Raises SubstanceError where the kernel refuses, as it does for less memory than is in use."""
        for key, value in (pair for group in limits for pair in group.values):
            await self._lxc("cgroup", key, value, timeout_s=10)

    async def execute(self, argv: Sequence[str], *, stdin: bytes, timeout_s: float) -> Ended:
        if not self.running:
            raise SubstanceError(f"CT {self.vmid} not running")
        return await self.programs.run(*attach(self.directory, self.vmid), *argv, stdin=stdin, timeout_s=timeout_s, reaps=True)

    async def _lxc(self, program: str, *arguments: str, timeout_s: float) -> None:
        await self.programs.do(
            f"lxc-{program}", "-P", self.above, "-n", self.name, *arguments, timeout_s=timeout_s, what=f"CT {self.vmid}: lxc-{program}"
        )
