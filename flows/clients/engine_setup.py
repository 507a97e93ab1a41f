"""Makes a Prefect server ours: work pool, queues with their limits, healing automations, deployments. Every call converges.

Called by ``zlh up`` and the demo. Promises that a second call changes nothing, keeps every id,
and that what it returns from is really in place.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from flows.clients.engine_api import PrefectApi, text
from flows.clients.engine_processes import client_env, deploy_argv, reset_argv, server_env
from flows.domain.operation import Queue
from flows.errors import BadAnswer, Conflict, DeadlineExceeded, MisconfiguredSetting, NotFound, TaskFailed, Temporary
from flows.settings import EngineSettings

#: Runs that a queue lets be under way at once; None: no limit. The sweep is guarded by its epoch, never by the engine.
#: A run is a process of about 84 MB.
QUEUE_LIMITS: Mapping[Queue, int | None] = {Queue.PROVISIONING: 1, Queue.OPERATIONS: 8, Queue.REPAIRS: 4, Queue.RECONCILE: None}

_OVER = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut")


@dataclass(frozen=True, slots=True)
class Healing:
    """When the engine gives a silent run up, in seconds: nothing re-runs by itself, and a run that died keeps its slot in its queue.

    ``heartbeat_s`` must exceed the flows' heartbeat (30 s); ``pending_s`` the time that a loaded machine needs to start a process.
    """

    heartbeat_s: float = 90.0
    pending_s: float = 120.0


class EngineSetup:
    """``home`` is the working directory of flow runs and holds the Prefect profile; one instance per set-up; close it."""

    def __init__(self, settings: EngineSettings, home: Path, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings, self._home = settings, home.resolve()
        self._api = PrefectApi(settings, transport=transport)

    async def close(self) -> None:
        await self._api.close()

    async def run(self, prefect_file: Path, *, interval_s: float | None = None, healing: Healing | None = None, wait_s: float = 60.0) -> None:
        """Everything, in order. ``interval_s`` overrides the sweep's interval (a shortened demo). Raises as the parts do."""
        await self.wait_healthy(wait_s)
        await self.pool()
        await self.queues()
        await self.automations(healing or Healing())
        await self.deployments(prefect_file, interval_s=interval_s)

    async def renewable(self, *, wait_s: float = 60.0) -> None:
        """Raises what :meth:`renew` would raise before it touches anything: NotFound where ``home`` holds no database of the server, and what
        :meth:`wait_healthy` raises."""
        if not await asyncio.to_thread(self._file.is_file):
            raise NotFound(f"the engine's database {self._file}", why="it is not there", remedy="set ZLH_ENGINE__HOME to the directory that holds it")
        await self.wait_healthy(wait_s)

    async def renew(self, prefect_file: Path, *, interval_s: float | None = None, wait_s: float = 60.0, deadline_s: float = 300.0) -> None:
        """Throws the server's database away and sets the server up again, while it runs: what it knew of runs is gone, workers come back by
        themselves. Killed in between it is done by calling it again. Raises Conflict where the server turns out to use another database."""
        await self.renewable(wait_s=wait_s)
        status, output = await _run(reset_argv(), self._home, server_env(self._home, self._settings), deadline_s)
        if status != 0:
            raise TaskFailed("prefect server database reset", why=output[-2000:], remedy="run it again: zlh engine reset")
        await self.wait_healthy(wait_s)
        left = await self._api.pages("look for flows", "/flows/filter", {})
        if left:
            why = f"the server still knows {len(left)} flows: {self._file} is not its database"
            raise Conflict("engine reset", why=why, remedy="reset its own: prefect server database reset, in the server's environment; then again")
        await self.run(prefect_file, interval_s=interval_s, wait_s=wait_s)

    @property
    def _file(self) -> Path:
        return self._home / "prefect.db"

    async def wait_healthy(self, deadline_s: float) -> None:
        """Until the server answers an authorized call. Raises DeadlineExceeded, or Unauthorized at once: waiting mends no credential."""
        end = time.monotonic() + deadline_s
        while True:
            try:
                await self._api.call("wait for the server", "GET", "/ready")
                await self._api.call("check the credential", "GET", "/admin/version")
                return
            except (Temporary, NotFound) as error:  # not found: another program answers on this port, perhaps not for long
                if time.monotonic() >= end:
                    why = f"not ready after {deadline_s:g} s: {error.why}"
                    raise DeadlineExceeded("engine: wait for the server", why=why, remedy="see its log; check ZLH_ENGINE__URL") from error
            await asyncio.sleep(0.2)

    async def pool(self) -> None:
        """The work pool. Its template has no variables, so that no run can choose its command, environment or directory; the command is
        explicit, because the worker would otherwise use a ``uv run`` of its own wherever uv is installed."""
        name = self._settings.pool
        template = {
            "variables": {"type": "object", "properties": {}},
            "job_configuration": {
                "command": shlex.join([sys.executable, "-m", "prefect.engine"]),
                "env": {"PREFECT_CLIENT_RETRY_EXTRA_CODES": ""},  # the worker's alone
                "labels": {},
                "name": None,
                "stream_output": True,
                "working_dir": str(self._home),
            },
        }
        try:
            pool = await self._api.call(f"read pool {name}", "GET", f"/work_pools/{name}")
        except NotFound:
            body = {"name": name, "type": "process", "base_job_template": template}
            await self._api.call(f"create pool {name}", "POST", "/work_pools/", body)
            return
        if text(pool, "type") != "process":
            raise MisconfiguredSetting("ZLH_ENGINE__POOL", why=f"{name} is a {pool['type']} pool", remedy="name another, or delete that one")
        await self._api.call(f"update pool {name}", "PATCH", f"/work_pools/{name}", {"base_job_template": template, "is_paused": False})

    async def queues(self) -> None:
        """The four queues, each with its limit."""
        pool = self._settings.pool
        for queue, limit in QUEUE_LIMITS.items():
            path = f"/work_pools/{pool}/queues/{queue.value}"
            try:
                await self._api.call(f"read queue {queue}", "GET", path)
            except NotFound:
                await self._api.call(f"create queue {queue}", "POST", f"/work_pools/{pool}/queues", {"name": queue.value, "concurrency_limit": limit})
            else:
                await self._api.call(f"update queue {queue}", "PATCH", path, {"concurrency_limit": limit})

    async def automations(self, healing: Healing) -> None:
        """Both automations that give silent runs up. By name: an existing one is replaced."""
        for wanted in healing_automations(healing):
            name = wanted["name"]
            found = await self._api.pages(f"read automation {name}", "/automations/filter", {"automations": {"name": {"any_": [name]}}})
            if found:
                await self._api.call(f"update automation {name}", "PUT", f"/automations/{text(found[0], 'id')}", wanted)
            else:
                await self._api.call(f"create automation {name}", "POST", "/automations/", wanted)

    async def deployments(self, prefect_file: Path, *, interval_s: float | None = None, deadline_s: float = 120.0) -> None:
        """``prefect deploy --all`` in a process of its own, then a look whether every deployment is there, and refuses parameters that it has not.

        Raises TaskFailed with the output's tail, DeadlineExceeded, or NotFound for a deployment that is missing afterwards.
        """
        config = rendered(prefect_file, pool=self._settings.pool, interval_s=interval_s)
        with tempfile.TemporaryDirectory(prefix="zlh-deploy-") as scratch:
            file = await asyncio.to_thread(_write, Path(scratch, "prefect.yaml"), config)
            status, output = await _run(deploy_argv(file), self._home, client_env(self._home, self._settings), deadline_s)
        if status != 0:
            raise TaskFailed("prefect deploy --all", why=output[-2000:], remedy=f"correct {prefect_file}, then run it again")
        for deployment in config["deployments"]:
            await self._close_schema(deployment["name"])

    async def _close_schema(self, name: str) -> None:
        """An unknown parameter is refused when a run is ordered, by name. Prefect's own schema admits it, and the run would fail later."""
        row = await self._api.call(f"look for {name}", "GET", f"/deployments/name/{name}/{name}", missing=f"deployment {name}/{name}")
        schema = row.get("parameter_openapi_schema") if isinstance(row, Mapping) else None
        if not isinstance(schema, Mapping):
            raise BadAnswer(f"engine: look for {name}", why="it has no parameter schema")
        if schema.get("additionalProperties") is not False:
            closed = {"parameter_openapi_schema": {**schema, "additionalProperties": False}}
            await self._api.call(f"close the schema of {name}", "PATCH", f"/deployments/{text(row, 'id')}", closed)


def rendered(prefect_file: Path, *, pool: str, interval_s: float | None) -> dict[str, Any]:
    """The file's content for one installation: its pool, and the sweep's interval. Raises MisconfiguredSetting for an unset placeholder:
    Prefect itself would store it literally and report success."""
    content = prefect_file.read_text()
    if "{{" in content:
        raise MisconfiguredSetting(str(prefect_file), why="holds a {{ placeholder }}", remedy="write the value: nothing fills placeholders in")
    config: dict[str, Any] = yaml.safe_load(content)
    for deployment in config["deployments"]:
        deployment["work_pool"]["name"] = pool
        for schedule in deployment.get("schedules", ()):
            if interval_s is not None and "interval" in schedule:
                schedule["interval"] = interval_s
    return config


def _write(file: Path, config: Mapping[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def healing_automations(healing: Healing) -> list[dict[str, Any]]:
    """Silent while running, and never got from Pending to Running: both end as Crashed, which frees the slot."""
    over = [f"prefect.flow-run.{state}" for state in _OVER]
    return [
        _automation(
            "zlh: silent runs are crashed",
            # Running too: a run that is killed at once never sent a heartbeat.
            after=["prefect.flow-run.heartbeat", "prefect.flow-run.Running"],
            expect=["prefect.flow-run.heartbeat", *over],
            within_s=healing.heartbeat_s,
        ),
        _automation(
            "zlh: runs that never start are crashed",
            after=["prefect.flow-run.Pending"],
            expect=["prefect.flow-run.Running", "prefect.flow-run.heartbeat", "prefect.flow-run.Scheduled", *over],
            within_s=healing.pending_s,
        ),
    ]


def _automation(name: str, *, after: list[str], expect: list[str], within_s: float) -> dict[str, Any]:
    return {
        "name": name,
        "description": "Made by zlh; changes made by hand are undone by the next set-up.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "for_each": ["prefect.resource.id"],
            "after": after,
            "expect": expect,
            "threshold": 1,
            "within": within_s,
        },
        "actions": [{"type": "change-flow-run-state", "state": "CRASHED", "message": f"{name}: nothing was heard for {within_s:g} s"}],
    }


async def _run(argv: list[str], cwd: Path, env: Mapping[str, str], deadline_s: float) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=cwd, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), deadline_s)
    except TimeoutError as error:
        raise DeadlineExceeded(shlex.join(argv[1:]), why=f"not done after {deadline_s:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(errors="replace")
