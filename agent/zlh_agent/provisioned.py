"""What the container's kind needs and does not have: true provisioning is verified, not remembered. Asked by ``routes``."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import stat
import time
import tomllib
from pathlib import Path
from typing import Any

from zlh_agent import systemd
from zlh_agent.config import Config, NotPrepared, load_game
from zlh_agent.unit import UnitError

#: Seconds for which an answer speaks: whoever asks often causes no more than one look.
FRESH_S = 5.0
RUNTIMES = Path("/opt/zlh/runtimes")
#: Written last into the directory of a runtime, when it is whole.
MARK = ".zlh-sha256"
#: Bytes that are read of eula.txt.
EULA = 4096
_log = logging.getLogger(__name__)
_SSHD = ("ssh.service", "ssh.socket")


class Provisioned:
    """``runtimes`` is where they are installed."""

    def __init__(self, config: Config, runtimes: Path = RUNTIMES) -> None:
        self._config, self._runtimes = config, runtimes
        self._missing: list[str] = []
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._said: dict[tuple[str, ...], bool] = {}

    async def missing(self) -> list[str]:
        """Empty when everything is there. An entry names the thing, without secrets, in at most 128 characters."""
        async with self._looking:
            if time.monotonic() - self._looked_at > FRESH_S:
                found = await (self._game() if self._config.kind == "game" else self._dev())
                self._missing, self._looked_at = [item[:128] for item in found[:32]], time.monotonic()
        return self._missing

    def forget(self) -> None:
        """The next question is answered by a new look."""
        self._looked_at = float("-inf")

    async def _game(self) -> list[str]:
        try:
            game = load_game(self._config.game_file)
        except NotPrepared as error:
            return [str(error)]
        missing = []
        if not _is_file(game.directory / "server.jar"):
            missing.append(f"jar: {game.directory / 'server.jar'}")
        if not _accepted(game.directory / "eula.txt"):
            missing.append(f"eula: {game.directory / 'eula.txt'}")
        try:
            if not stat.S_ISFIFO(game.console.stat().st_mode):
                missing.append(f"console: {game.console} is no FIFO")
        except OSError:
            missing.append(f"console: {game.console}")
        if not await self._unit("LoadState", "loaded", game.unit):
            missing.append(f"unit: {game.unit}")
        return missing

    async def _dev(self) -> list[str]:
        try:
            wanted = tomllib.loads(self._config.dev_file.read_text())
        except FileNotFoundError:
            wanted = {}
        except (OSError, ValueError) as error:
            return [f"{self._config.dev_file}: {type(error).__name__}"]
        missing = []
        user, workspace = str(wanted.get("user", "dev")), Path(str(wanted.get("workspace", "/home/dev/workspace")))
        try:
            uid: int | None = pwd.getpwnam(user).pw_uid
        except KeyError:
            uid = None
            missing.append(f"user: {user}")
        if not _owned(workspace, uid):
            missing.append(f"workspace: {workspace}")
        if not await self._unit("ActiveState", "active", *_SSHD):
            missing.append("sshd")
        missing += [f"runtime: {name} {version}" for name, version in _runtimes(wanted) if not _is_file(self._runtimes / name / version / MARK)]
        if wanted.get("code_server") is True and not await self._unit("LoadState", "loaded", "code-server.service"):
            missing.append("code-server")
        return missing

    async def _unit(self, name: str, value: str, *units: str) -> bool:
        """Whether one of the units has that property. While systemd says nothing its last answer counts; before the first it is not said to be
        missing, since nobody knows."""
        try:
            _, out, _ = await systemd.run("systemctl", "show", "--property", name, *units)
        except UnitError as error:
            _log.warning("%s of %s is not known: %s", name, ", ".join(units), error)
        else:
            self._said[units] = f"{name}={value}" in out.splitlines()
        return self._said.get(units, True)


def _owned(directory: Path, uid: int | None) -> bool:
    try:
        return directory.is_dir() and uid in (None, directory.stat().st_uid)
    except OSError:
        return False


def _accepted(eula: Path) -> bool:
    """The directory is the game user's, who may put there whatever he likes: what blocks, has no end or leads elsewhere is no acceptance."""
    try:
        descriptor = os.open(eula, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        text = os.read(descriptor, EULA).decode() if stat.S_ISREG(os.fstat(descriptor).st_mode) else ""
    except (OSError, UnicodeDecodeError):
        return False
    finally:
        os.close(descriptor)
    return "eula=true" in text.replace(" ", "").lower().splitlines()


def _runtimes(wanted: dict[str, Any]) -> list[tuple[str, str]]:
    listed = wanted.get("runtimes")
    return [(str(r.get("name")), str(r.get("version"))) for r in listed if isinstance(r, dict)] if isinstance(listed, list) else []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
