"""One fixed command in a container, as root over strict SSH. Used by ``zlh agents unfence``; all that converges is Ansible's."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flows.clients.http import fit
from flows.errors import AmbiguousEffect, MisconfiguredSetting, TaskFailed, Unreachable

#: Seconds to connect, and for the whole command.
CONNECT_S, COMMAND_S = 10, 30.0
#: ssh's own exit status: the command did not run, or its end was not seen.
_SSH_FAILED = 255


async def command(address: str, line: str, *, key: Path | None, host_keys: Mapping[str, str], program: str = "ssh") -> str:
    """Output of ``line``, a constant of ours, run by the container's shell. ``host_keys``: type → key, as the trust step read them.

    Raises MisconfiguredSetting, Unreachable (nothing was done), AmbiguousEffect (no end within the time), TaskFailed.
    """
    what = f"ssh root@{address}"
    if key is None:
        raise MisconfiguredSetting("ZLH_ANSIBLE__PRIVATE_KEY", why="is not set", remedy="name the key that the containers admit")
    if not host_keys:
        raise Unreachable(what, why="its host key was never read", remedy="let the trust step run first: zlh explain SERVER")
    with tempfile.NamedTemporaryFile("w", prefix="zlh-known-hosts-") as known:
        known.writelines(f"{address} {kind} {value}\n" for kind, value in host_keys.items())
        known.flush()
        options = {
            "BatchMode": "yes", "StrictHostKeyChecking": "yes", "UserKnownHostsFile": known.name, "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes", "IdentityFile": str(key), "ConnectTimeout": str(CONNECT_S), "ClearAllForwardings": "yes", "LogLevel": "ERROR",
        }  # fmt: skip
        arguments = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        try:
            process = await asyncio.create_subprocess_exec(
                program, "-F", "/dev/null", *arguments, "-l", "root", "--", address, line,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise Unreachable(what, why=f"there is no program {program}", remedy="apt-get install openssh-client") from error
        try:
            async with asyncio.timeout(COMMAND_S):
                out, err = await process.communicate()
        except TimeoutError as error:
            raise AmbiguousEffect(
                what, why=f"no end within {COMMAND_S:g} s", remedy="look at the container, then run it again: it may be repeated"
            ) from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
    if process.returncode == _SSH_FAILED:
        raise Unreachable(what, why=_last(err) or "no connection", remedy="does the container run, and admit our key?")
    if process.returncode != 0:
        raise TaskFailed(what, why=_last(err) or f"exit code {process.returncode}")
    return out.decode(errors="replace")


def _last(err: bytes) -> str:
    """What it says in the end: ssh paints whole boxes before."""
    lines = [line for line in err.decode(errors="replace").splitlines() if line.strip()]
    return fit(lines[-1]) if lines else ""
