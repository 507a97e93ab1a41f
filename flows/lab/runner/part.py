"""``POST /playbooks`` on the control listener; the product's lab runner calls it in place of ansible-runner.

In: ``{playbook, server: {id, name, ctype, vmid, address, hostname}, variables, secrets, timeout_s}``. Out: NDJSON, one
``{"event": "task", "task"}`` per task and at last ``{"event": "end", "ok", "changed", "unreachable", "facts", "tail", "failed_task"}``.
The run dies with its connection: what had not happened until then never does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.lab.argspecs import ProjectError, problems
from flows.lab.config import LabConfig
from flows.lab.faults import Fault, Faults, Mode, cut
from flows.lab.runner.effects import EFFECTS, THROUGH_NODE, Effect, HostUnreachable, Inputs, TaskFailure, nothing
from flows.lab.runner.project import Playbook, read
from flows.lab.serving import problem
from flows.lab.world import LabContainer, World

#: Seconds between two looks at whether the caller is still there.
LOOK_S = 0.05
VALIDATING = "Validating arguments against arg spec 'main'"


class Target(BaseModel):
    """The server, as the caller knows it."""

    model_config = ConfigDict(extra="ignore")

    id: str
    name: str = ""
    ctype: str = ""
    vmid: int
    address: str
    hostname: str = ""


class Order(BaseModel):
    """One run."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    playbook: str
    server: Target
    variables: dict[str, Any] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(default_factory=dict, repr=False)
    timeout_s: float = Field(600.0, gt=0)


@dataclass
class Result:
    """The end line."""

    ok: bool
    changed: bool = False
    unreachable: bool = False
    facts: Mapping[str, Any] | None = None
    tail: str = ""
    failed_task: str = ""

    def line(self, secrets: Mapping[str, str]) -> dict[str, Any]:
        tail = self.tail
        for secret in secrets.values():
            if len(secret) >= 4:
                tail = tail.replace(secret, "***")
        return {"event": "end", **vars(self), "facts": dict(self.facts or {}), "tail": tail}


class CallerGone(Exception):
    """The connection dropped."""


async def start(config: LabConfig, world: World, faults: Faults) -> RunnerPart:
    return RunnerPart(config, world, faults)


class RunnerPart:
    """``inspect()`` lists the last runs, without variables."""

    name = "runner"

    def __init__(self, config: LabConfig, world: World, faults: Faults) -> None:
        self._project, self._task_s = config.runner.project_dir, config.runner.task_s
        self._agent_port = config.agents.port
        self._world, self._faults = world, faults
        self._locks: dict[int, asyncio.Lock] = {}
        self._runs: deque[dict[str, Any]] = deque(maxlen=500)
        self._live: set[asyncio.Task[Any]] = set()

    @property
    def endpoints(self) -> dict[str, str]:
        return {"path": "/playbooks"}

    def routes(self) -> Sequence[web.RouteDef]:
        return [web.post("/playbooks", self.serve)]

    async def stop(self) -> None:
        for task in list(self._live):
            task.cancel()

    async def restart(self) -> None:
        """Every run under way dies."""
        await self.stop()

    def inspect(self) -> dict[str, Any]:
        return {"running": len(self._live), "runs": list(self._runs)}

    async def serve(self, request: web.Request) -> web.StreamResponse:
        try:
            order = Order.model_validate_json(await request.read())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return problem(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
        fault = self._faults.hit("runner", order.playbook)
        if fault is not None and fault.mode is Mode.UNREACHABLE:
            return cut(request)
        if fault is not None and fault.mode is Mode.ERROR:
            return problem(fault.status, fault.message)
        task = asyncio.current_task()
        assert task is not None
        self._live.add(task)
        record: dict[str, Any] = {"playbook": order.playbook, "server": order.server.id, "vmid": order.server.vmid, "at": time.time(), "ended": ""}
        self._runs.append(record)
        run = _Run(request, order, record, fault, self._task_s)
        try:
            return await self._serve(run)
        except (CallerGone, ConnectionError):
            record["ended"] = "caller gone"
            return cut(request)
        finally:
            self._live.discard(task)

    async def _serve(self, run: _Run) -> web.StreamResponse:
        await run.begin()
        try:
            async with asyncio.timeout(run.order.timeout_s):
                result = await self._play(run)
        except TimeoutError:
            result = Result(False, tail=f"the run took longer than {run.order.timeout_s:g} s", failed_task=run.task)
        run.record.update(ended="done", ok=result.ok, changed=result.changed, unreachable=result.unreachable, failed_task=result.failed_task)
        if run.fault is not None and run.fault.mode is Mode.LOSE_ANSWER:
            return cut(run.request)
        await run.say(result.line(run.order.secrets))
        await run.response.write_eof()
        return run.response

    async def _play(self, run: _Run) -> Result:
        order = run.order
        try:
            playbook = read(self._project, order.playbook)
            wrong = problems(self._project / "roles", playbook.roles, {**order.variables, **order.secrets})
        except ProjectError as error:
            return Result(False, tail=f"ERROR! {error}")
        try:
            container = self._container(order)
            async with self._locks.setdefault(container.vmid, asyncio.Lock()):  # the flock that a play holds on its host
                if wrong:
                    await run.step(VALIDATING)
                    return Result(False, tail="Validation of arguments failed:\n" + "\n".join(wrong), failed_task=VALIDATING)
                return await self._act(run, playbook, container)
        except HostUnreachable as error:
            return Result(False, unreachable=True, tail=f"UNREACHABLE! => {error}", failed_task=run.task or "Gathering Facts")

    async def _act(self, run: _Run, playbook: Playbook, container: LabContainer) -> Result:
        order = run.order
        prepare = EFFECTS.get(order.playbook)
        done = Effect(False, nothing)
        tasks = playbook.tasks or (f"Run {order.playbook}",)
        for number, name in enumerate(tasks):
            await run.step(name)
            if self._container(order) is not container:
                raise HostUnreachable("the host was replaced while the play ran")
            if run.fails_at(number, len(tasks)):
                assert run.fault is not None
                return Result(False, tail=f'fatal: [{order.server.hostname}]: FAILED! => {{"msg": "{run.fault.message}"}}', failed_task=name)
        try:
            if prepare is not None:
                done = await prepare(container, Inputs(order.variables, order.secrets, self._agent_port))
        except TaskFailure as failure:
            return Result(False, tail=f'fatal: [{order.server.hostname}]: FAILED! => {{"msg": "{failure}"}}', failed_task=run.task)
        run.check()
        if self._container(order) is not container:
            raise HostUnreachable("the host was replaced while the play ran")
        done.apply()
        if done.changed:
            await self._world.changed(container.vmid)
        return Result(True, done.changed, facts=done.facts)

    def _container(self, order: Order) -> LabContainer:
        """Through the node by VMID, else by address over SSH: running, on a living node, and trusting us."""
        through_node = order.playbook in THROUGH_NODE
        container = self._world.containers.get(order.server.vmid) if through_node else self._world.by_address(order.server.address)
        node = self._world.nodes.get(container.node) if container is not None else None
        if through_node and (container is None or (node is not None and not node.online)):
            raise HostUnreachable(f"Configuration file 'nodes/…/lxc/{order.server.vmid}.conf' does not exist, or its node is down")
        if container is None or container.status != "running" or (node is not None and not node.online):
            raise HostUnreachable(f"Failed to connect to the host via ssh: connect to host {order.server.address} port 22: No route to host")
        if not through_node and container.trusted_key is None:
            raise HostUnreachable(f"Failed to connect to the host via ssh: root@{order.server.address}: Permission denied (publickey).")
        return container


class _Run:
    """One run's connection and clock. ``fault`` is the one that was armed for it."""

    def __init__(self, request: web.Request, order: Order, record: dict[str, Any], fault: Fault | None, task_s: float) -> None:
        self.request, self.order, self.record, self.fault = request, order, record, fault
        self.response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        self.task = ""
        self._task_s = task_s

    async def begin(self) -> None:
        self.response.enable_chunked_encoding()
        await self.response.prepare(self.request)
        if self.fault is not None and self.fault.mode is Mode.SLOW:
            await self._wait(self.fault.seconds)

    async def say(self, line: dict[str, Any]) -> None:
        self.check()
        await self.response.write(json.dumps(line).encode() + b"\n")

    async def step(self, name: str) -> None:
        """Announces a task and takes its time; a hanging run never gets past its first."""
        self.task = name
        await self.say({"event": "task", "task": name})
        hangs = self.fault is not None and self.fault.mode is Mode.HANG
        await self._wait(float("inf") if hangs else self._task_s)

    def fails_at(self, number: int, of: int) -> bool:
        return self.fault is not None and self.fault.mode is Mode.FAIL_TASK and number == of // 2

    def check(self) -> None:
        """Raises CallerGone when the connection dropped."""
        if self.request.transport is None or self.request.transport.is_closing():
            raise CallerGone

    async def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            await asyncio.sleep(min(LOOK_S, left))
        self.check()
