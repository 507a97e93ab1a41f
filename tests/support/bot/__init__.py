"""The player that tests send: ``bot.js`` with its own lock, bundled once per content where the lab keeps what it builds."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from flows.lab.ware_cache import CACHE, Run, cached, digest, tree

_HERE = Path(__file__).parent


def script() -> Path:
    """``bot.js`` as one file that node runs by itself. Raises AutomationError without npm or its registry."""

    def build(target: Path, run: Run) -> None:
        work = target.parent / "work"
        shutil.copytree(_HERE, work, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], work)
        run(["node", "build.mjs", str(target / "bot.js")], work)
        shutil.rmtree(work)

    sources = [(name, path) for name, path in tree(_HERE) if not name.endswith(".py")]
    return cached("bot", digest(sources), build, cache=CACHE) / "bot.js"


class Player:
    """One bot on its way. ``name`` is the host name that it asks for."""

    def __init__(
        self,
        port: int,
        name: str,
        *,
        seconds: float = 1.0,
        username: str = "bot",
        timeout_s: float = 20.0,
        host: str = "127.0.0.1",
        say: str | None = None,
    ) -> None:
        options = {"host": host, "port": port, "name": name, "seconds": seconds, "username": username, "timeout": timeout_s}
        if say is not None:
            options["say"] = say
        arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        self._process = subprocess.Popen(["node", str(script()), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self._deadline_s = seconds + timeout_s + 20

    def result(self) -> dict[str, Any]:
        """What it saw, when it has left. Its ``ok`` and ``stage`` say how far it got."""
        out, _ = self._process.communicate(timeout=self._deadline_s)
        seen: dict[str, Any] = json.loads(out)
        return seen

    @property
    def on_its_way(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """However it is; nothing stays behind."""
        self._process.kill()
        self._process.communicate()


def play(port: int, name: str, **options: Any) -> dict[str, Any]:
    """A whole visit; see :class:`Player`."""
    return Player(port, name, **options).result()
