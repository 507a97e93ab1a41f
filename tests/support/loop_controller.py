"""One of several controllers on one world: ``python -m tests.support.loop_controller NAME``. A sweep each interval by the product's own
code, without an engine; the world is in the environment (``ZLH_*``), submissions go to the directory in ``LOOP_ENGINE``.

Says one JSON object a line:

=====================  ==================================================================================================
``{"ready": …}``       its settings are read and its clients are built
``{"sweep": …}``       a sweep ended: ``outcome``, ``epoch``, ``repairs``, ``reason``, ``seconds``
``{"failed": …}``      a sweep ended by an error, which its flow would have failed with
``{"call": …}``        a writing call to a peer began; with ``"done"``: it came back
``{"wrote": …}``       a transaction was committed: its name, and verb, table and number of rows of each statement
``{"stopped": …}``     the armed point is reached; the process raises SIGSTOP on itself
=====================  ==================================================================================================

and takes JSON objects from its input: ``{"stop_at": POINT}`` (a glob; once), ``{"hold": true}`` (no new sweep begins), ``{"interval": S}``.
Points are ``tx:<module>.<function>:open|commit|done`` of every writing transaction (begun · all written, not yet committed · committed),
``call:<client>.<method>:before|after`` of every writing call, and the product's own boundaries (``repair:<action>:intent|effect``).
"""

from __future__ import annotations

import asyncio
import dataclasses
import fnmatch
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event

from flows import bootstrap
from flows.act.sweep import sweep
from flows.domain.sources import EngineRun
from flows.errors import AutomationError
from flows.settings import load
from flows.state.database import Database, Tx

#: Calls that change something at a peer.
WRITES: Mapping[str, frozenset[str]] = {
    "proxmox": frozenset({"clone", "configure", "start", "stop", "shutdown", "destroy"}),
    "agents": frozenset({"start", "stop", "restart"}),
    "proxy": frozenset({"register", "deregister", "rehydrate"}),
    "dns": frozenset({"publish", "withdraw"}),
    "engine": frozenset({"submit", "give_up"}),
}
_STATEMENT = re.compile(r"\s*(INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+[`\"]?(\w+)", re.IGNORECASE)


def say(**what: Any) -> None:
    print(json.dumps(what, default=str), flush=True)


class Points:
    """Where this process may be stopped."""

    def __init__(self) -> None:
        self.armed = ""

    def at(self, name: str) -> None:
        if self.armed and fnmatch.fnmatch(name, self.armed):
            self.armed = ""
            say(stopped=name)
            os.kill(os.getpid(), signal.SIGSTOP)

    async def boundary(self, name: str) -> None:
        self.at(name)


class PointedDatabase(Database):
    """Names each writing transaction by the function that opened it, and tells what was committed. ``bootstrap`` builds it, as it would the
    product's own, with the same options."""

    points = Points()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        event.listen(self.engine.sync_engine, "after_cursor_execute", self._executed)
        event.listen(self.engine.sync_engine, "commit", self._committed)
        event.listen(self.engine.sync_engine, "rollback", self._undone)

    def write(self, *, epoch: int | None = None) -> Any:
        code = sys._getframe(1).f_code
        return self._named(f"{Path(code.co_filename).stem}.{code.co_name}", epoch)

    @asynccontextmanager
    async def _named(self, name: str, epoch: int | None) -> AsyncIterator[Tx]:
        async with super().write(epoch=epoch) as tx:
            self.points.at(f"tx:{name}:open")
            yield tx
            self.points.at(f"tx:{name}:commit")
            connection = await tx.conn.get_raw_connection()
            connection.info["named"] = name
        self.points.at(f"tx:{name}:done")

    @staticmethod
    def _executed(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        found = _STATEMENT.match(statement)
        if found is not None and cursor.rowcount:
            conn.info.setdefault("wrote", []).append([found[1].split()[0].lower(), found[2], cursor.rowcount, _words(parameters)])

    @staticmethod
    def _committed(conn: Any) -> None:
        wrote, name = conn.info.pop("wrote", None), conn.info.pop("named", "")
        if wrote:
            say(wrote=name, statements=wrote)

    @staticmethod
    def _undone(conn: Any) -> None:
        if not conn.invalidated:  # one that is gone took with it what was noted, and has no ``info`` any more
            conn.info.pop("wrote", None)


def _words(parameters: Any) -> list[str]:
    """The short texts among a statement's values: outcomes, states, actors."""
    values = parameters.values() if isinstance(parameters, Mapping) else parameters or ()
    return [value for value in values if isinstance(value, str) and len(value) < 400]


class Pointed:
    """A client whose writing calls pass points on their way out and back."""

    def __init__(self, name: str, client: Any, points: Points) -> None:
        self._name, self._client, self._points = name, client, points

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._client, method)
        if method not in WRITES[self._name]:
            return call
        name = f"{self._name}.{method}"

        async def pointed(*args: Any, **kwargs: Any) -> Any:
            self._points.at(f"call:{name}:before")
            say(call=name)
            try:
                return await call(*args, **kwargs)
            finally:
                say(call=name, done=True)
                self._points.at(f"call:{name}:after")

        return pointed


class DirectoryEngine:
    """An engine for all controllers of a world: a file a key, made once. Whoever watches the directory starts the run and writes the file
    ``<key>.ended`` behind it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def submit(self, deployment: str, key: str, parameters: Mapping[str, object], queue: str) -> str:
        path = self._path(key)
        if not path.exists():
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps({"key": key, "deployment": deployment, **parameters}))
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return key

    async def runs(self, keys: Sequence[str]) -> Mapping[str, EngineRun]:
        found = {}
        for key in keys:
            path = self._path(key)
            if path.exists():
                ended = path.with_suffix(".ended").exists()
                found[key] = EngineRun(key, key, "completed" if ended else "running", ended)
        return found

    async def cancel(self, run_id: str) -> None: ...

    async def give_up(self, run_id: str, reason: str) -> None: ...

    def _path(self, key: str) -> Path:
        return self._directory / f"{key.replace(':', '_')}.json"


class Loop:
    """Sweeps, and obeys its input between them."""

    def __init__(self, points: Points, interval_s: float) -> None:
        self.points, self.interval_s = points, interval_s
        self._free = asyncio.Event()
        self._free.set()

    async def obey(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order = json.loads(line)
            self.points.armed = order.get("stop_at", self.points.armed)
            self.interval_s = order.get("interval", self.interval_s)
            if "hold" in order:
                (self._free.clear if order["hold"] else self._free.set)()
            say(obeyed=order)

    async def sweep(self, deps: Any, gate: Any) -> None:
        while True:
            await self._free.wait()
            began = time.monotonic()
            say(begins=True)
            try:
                result = await sweep(deps, gate, lambda line: say(line=line))
                say(
                    sweep=result.outcome,
                    epoch=result.epoch,
                    repairs=list(result.outcomes),
                    findings=[] if result.plan is None else sorted(f.key for f in result.plan.findings),
                    skipped={} if result.plan is None else dict(result.plan.skipped),
                    reason=result.reason,
                    seconds=round(result.seconds, 2),
                )
            except AutomationError as error:
                say(failed=type(error).__name__, why=str(error))
            await asyncio.sleep(max(0.0, self.interval_s - (time.monotonic() - began)))


async def main(name: str) -> None:
    settings, points = load(), PointedDatabase.points
    gate = bootstrap.gate(settings)
    bootstrap.Database = PointedDatabase  # type: ignore[misc]  # its options are the composition root's to choose
    async with bootstrap.deps(settings) as deps:
        clients: dict[str, Any] = {"proxmox": deps.proxmox, "agents": deps.agents, "proxy": deps.proxy, "dns": deps.dns}
        clients["engine"] = DirectoryEngine(Path(os.environ["LOOP_ENGINE"]))
        pointed: dict[str, Any] = {key: Pointed(key, client, points) for key, client in clients.items()}
        deps = dataclasses.replace(deps, boundary=points.boundary, holder=f"{name}:{deps.holder}"[:128], **pointed)
        loop = Loop(points, settings.timing.sweep_s)
        obeying = asyncio.create_task(loop.obey())
        say(ready=name, pid=os.getpid(), holder=deps.holder, wall=time.time())
        sweeping = asyncio.create_task(loop.sweep(deps, gate))
        await asyncio.wait({obeying, sweeping}, return_when=asyncio.FIRST_COMPLETED)
        sweeping.cancel()
        await asyncio.wait({sweeping})
        if not sweeping.cancelled():
            sweeping.result()
    await gate.close()  # type: ignore[attr-defined]  # both gates have it


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
