"""Runs the system's programs: each with a deadline, a clean environment and the lab's mark, dead when the lab is."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.lab.lxc import names, processes
from flows.lab.substance import Ended, SubstanceError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TAIL = 300


def tail(text: bytes | str) -> str:
    """The last lines of a program's errors, as one line."""
    lines = (text.decode(errors="replace") if isinstance(text, bytes) else text).split("\n")
    return " / ".join(line.strip() for line in lines if line.strip())[-_TAIL:]


def missing(programs: Sequence[str]) -> list[str]:
    return [program for program in programs if shutil.which(program, path=PATH) is None]


class Programs:
    """One per lab. After :attr:`closed` is set nothing is started any more."""

    def __init__(self, directory: Path) -> None:
        self.environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", **names.mark(directory)}
        self.closed = False

    async def run(
        self,
        *argv: str | Path,
        timeout_s: float,
        stdin: bytes = b"",
        capture: bool = True,
        reaps: bool = False,
        more: Mapping[str, str] | None = None,
    ) -> Ended:
        """Runs to its end, whatever its code. Raises SubstanceError where it cannot be started or outlives ``timeout_s``: then it and all
        its descendants are killed, as on cancellation. ``capture`` false: for what leaves a daemon behind, which would keep the pipes.
        ``reaps``: its children are killed before it, so that it sees them end: an attached command's zombie would keep its container
        from halting, where the machine's init does not care for orphans."""
        if self.closed:
            raise SubstanceError(f"{argv[0]}: not run, for the lab is closing")
        pipe = asyncio.subprocess.PIPE if capture else asyncio.subprocess.DEVNULL
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", "--"),
                *map(str, argv),
                stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                env={**self.environment, **(more or {})},
                start_new_session=True,
            )
        )
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:  # asyncio itself would kill the one process and forget its children
            with contextlib.suppress(OSError):
                await self._kill(await starting, reaps)
            raise
        except OSError as error:
            raise SubstanceError(f"{argv[0]}: cannot be started: {error}") from error
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate(stdin or None)
        except TimeoutError:
            raise SubstanceError(f"{argv[0]}: did not end within {timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                await self._kill(process, reaps)
        return Ended(process.returncode if process.returncode is not None else -9, out or b"", err or b"")

    @staticmethod
    async def _kill(process: asyncio.subprocess.Process, reaps: bool) -> None:
        for root in (False, True) if reaps else (True,):
            processes.end_tree(process.pid, root=root)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5 if root else 1):
                    await process.communicate()  # to the end of its pipes
                return

    async def do(self, *argv: str | Path, timeout_s: float = 60.0, what: str = "", more: Mapping[str, str] | None = None) -> bytes:
        """Its standard output. Raises SubstanceError, with the end of its errors, unless it ends with 0."""
        ended = await self.run(*argv, timeout_s=timeout_s, more=more)
        if ended.code != 0:
            raise SubstanceError(f"{what or argv[0]}: {tail(ended.err) or tail(ended.out) or f'ended with {ended.code}'}")
        return ended.out
