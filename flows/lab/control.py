"""The lab's control API: look at everything, break anything. For people, ``zlh lab``, the demo and tests; never for the product.

Loopback HTTP behind a bearer token; problem documents for errors. The playbook runner is reached through the same listener.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from flows.lab.agents import RealAgents
from flows.lab.config import ControlConfig, split_bind
from flows.lab.faults import MODES, Fault, Faults, Mode
from flows.lab.part import Manipulable, Part, PartError, Restartable, Routed
from flows.lab.serving import Refused, Site, bearer_is, problem, read_json, refusals, refuse, unauthorized
from flows.lab.substance import SubstanceError
from flows.lab.world import LabAgent, LabContainer, World, describe

Order = TypeVar("Order", bound=BaseModel)
TARGETS = tuple(target for target in MODES if target != "agent")


class FaultOrder(BaseModel):
    """The body of ``POST /faults``. ``for_s`` ends the fault after so many seconds, ``count`` after so many hits."""

    model_config = ConfigDict(extra="forbid")

    target: str = Field(description="a part's name, or agent:<vmid>")
    mode: Mode
    call: str = Field("*", min_length=1, description="glob over METHOD /path, playbook or record name")
    count: int | None = Field(None, ge=1)
    for_s: float | None = Field(None, gt=0)
    status: int = Field(500, ge=400, le=599)
    seconds: float = Field(5.0, ge=0)
    message: str = "lab fault"

    @field_validator("target")
    @classmethod
    def _known(cls, value: str) -> str:
        kind, _, vmid = value.partition(":")
        if value not in TARGETS and not (kind == "agent" and vmid.isdigit()):
            raise ValueError(f"must be one of {', '.join(TARGETS)} or agent:<vmid>")
        return value

    @field_validator("mode")
    @classmethod
    def _played(cls, value: Mode, info: ValidationInfo) -> Mode:
        can = MODES.get(str(info.data.get("target")).partition(":")[0], frozenset(Mode))
        if value not in can:
            raise ValueError(f"{info.data['target']} cannot play {value}, only {', '.join(mode for mode in Mode if mode in can)}")
        return value


class DnsOrder(BaseModel):
    model_config = ConfigDict(extra="forbid")

    op: str = Field(pattern="^(delete|replace|add)$")
    name: str = Field(min_length=1)
    rtype: str | None = None
    value: str | list[str] | None = None
    ttl: int | None = Field(None, ge=0)


class RegistrationOrder(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    address: str = Field(min_length=1)
    port: int = Field(25565, ge=1, le=65535)


class Control:
    """The listener. ``parts`` may still grow until :meth:`open`; those that are ``Routed`` are mounted beside the API."""

    name = "control"

    def __init__(self, config: ControlConfig, world: World, faults: Faults, parts: Mapping[str, Part]) -> None:
        self._token = config.token.get_secret_value()
        self.world, self.faults, self.parts = world, faults, parts
        self.started = time.time()
        self.site = Site(split_bind(config.bind), self._app)

    @property
    def endpoints(self) -> Mapping[str, str]:
        return {"url": self.site.url}

    async def open(self) -> None:
        await self.site.open()

    async def stop(self) -> None:
        await self.site.close()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[refusals, self._guard], client_max_size=8 << 20)
        app.add_routes(
            [
                web.get("/state", self.state),
                web.get("/faults", self.list_faults),
                web.post("/faults", self.arm),
                web.delete("/faults", self.clear),
                web.delete("/faults/{id:[0-9]+}", self.clear),
                web.post("/containers/{vmid:[0-9]+}/{op:start|stop|die|destroy|lock|unlock}", self.container),
                web.post("/nodes/{node}/{op:down|up}", self.node),
                web.post("/parts/{name}/restart", self.restart),
                web.post("/agents/{vmid:[0-9]+}/{op}", self.agent),
                web.post("/dns", self.dns),
                web.post("/bridge/register", self.register),
                web.post("/bridge/{op:deregister|configure}", self.bridge),
            ]
        )
        for part in self.parts.values():
            if isinstance(part, Routed):
                app.add_routes(part.routes())
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if not bearer_is(request, self._token):
            return unauthorized()
        try:
            answer: web.StreamResponse = await handler(request)
        except PartError as error:
            return problem(422, str(error))
        return answer

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────
    async def state(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "at": time.time(),
                "started_at": self.started,
                "parts": {name: {"endpoints": dict(part.endpoints), **part.inspect()} for name, part in self.parts.items()},
                "containers": {str(c.vmid): await self._described(c) for c in list(self.world.containers.values())},
                "agents": {str(c.vmid): _agent(c, c.agent) for c in self.world.containers.values() if c.agent is not None},
                "faults": [_fault(f) for f in self.faults.live()],
            }
        )

    async def _described(self, container: LabContainer) -> dict[str, Any]:
        """With what really runs, not what the record believes."""
        try:
            running = not container.template and await self.world.substance.running(container)
        except SubstanceError:
            return {**describe(container), "status": "unknown"}
        return {**describe(container), "status": "running" if running else "stopped"}

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────
    async def list_faults(self, request: web.Request) -> web.Response:
        return web.json_response({"faults": [_fault(f) for f in self.faults.live()]})

    async def arm(self, request: web.Request) -> web.Response:
        order = await _body(request, FaultOrder)
        if order.target in TARGETS and order.target not in self.parts:
            raise refuse(problem(422, f"target: the part {order.target!r} does not run in this lab", field="target"))
        if order.target.startswith("agent") and isinstance(self.parts.get("agents"), RealAgents):
            raise refuse(problem(422, f"target: real agents play no {order.mode}; they can be killed, frozen and revived", field="target"))
        options = order.model_dump(exclude={"target", "mode", "for_s"})
        until = None if order.for_s is None else time.monotonic() + order.for_s
        return web.json_response(_fault(self.faults.arm(order.target, order.mode, until=until, **options)), status=201)

    async def clear(self, request: web.Request) -> web.Response:
        """All, one by its id (in the path or as ``?id=``), or those of ``?target=``."""
        one = request.match_info.get("id") or request.query.get("id")
        if one is not None and not one.isdigit():
            raise refuse(problem(422, "id: must be a number", field="id"))
        gone = self.faults.clear(None if one is None else int(one), request.query.get("target"))
        if one is not None and not gone:
            raise refuse(problem(404, f"there is no fault {one}"))
        return web.json_response({"cleared": gone})

    # ── behind the product's back ───────────────────────────────────────────────────────────────────
    def _part(self, name: str) -> Part:
        part = self.parts.get(name)
        if part is None:
            raise refuse(problem(404, f"the part {name!r} does not run in this lab; there are {', '.join(sorted(self.parts))}"))
        return part

    async def _manipulate(self, name: str, op: str, arguments: Mapping[str, Any]) -> web.Response:
        part = self._part(name)
        if not isinstance(part, Manipulable):
            raise refuse(problem(422, f"the part {name!r} cannot be manipulated"))
        return web.json_response(await part.manipulate(op, arguments))

    async def container(self, request: web.Request) -> web.Response:
        vmid = int(request.match_info["vmid"])
        if vmid not in self.world.containers:
            raise refuse(problem(404, f"there is no container {vmid}"))
        extra = await read_json(request) if request.body_exists else {}
        return await self._manipulate("proxmox", request.match_info["op"], {**extra, "vmid": vmid})

    async def node(self, request: web.Request) -> web.Response:
        return await self._manipulate("proxmox", request.match_info["op"], {"node": request.match_info["node"]})

    async def agent(self, request: web.Request) -> web.Response:
        vmid = int(request.match_info["vmid"])
        if vmid not in self.world.containers:
            raise refuse(problem(404, f"there is no container {vmid}"))
        extra = await read_json(request) if request.body_exists else {}
        return await self._manipulate("agents", request.match_info["op"], {**extra, "vmid": vmid})

    async def dns(self, request: web.Request) -> web.Response:
        """The zone is Cloudflare's where that part runs: the product keeps it there."""
        order = await _body(request, DnsOrder)
        return await self._manipulate(
            "cloudflare" if "cloudflare" in self.parts else "dns", order.op, order.model_dump(exclude={"op"}, exclude_none=True)
        )

    async def register(self, request: web.Request) -> web.Response:
        return await self._manipulate("bridge", "register", (await _body(request, RegistrationOrder)).model_dump())

    async def bridge(self, request: web.Request) -> web.Response:
        return await self._manipulate("bridge", request.match_info["op"], await read_json(request))

    async def restart(self, request: web.Request) -> web.Response:
        part = self._part(request.match_info["name"])
        if not isinstance(part, Restartable):
            raise refuse(problem(422, f"the part {part.name!r} cannot be restarted by itself"))
        await part.restart()
        return web.json_response({"restarted": part.name, "endpoints": dict(part.endpoints)})


def _fault(fault: Fault) -> dict[str, Any]:
    shown = dataclasses.asdict(fault)
    shown["until"] = None if fault.until is None else round(fault.until - time.monotonic(), 3)
    shown["for_s"] = shown.pop("until")
    return shown


def _agent(container: LabContainer, agent: LabAgent) -> dict[str, Any]:
    """What an agent holds, without its secrets."""
    held = dataclasses.asdict(agent)
    for secret in ("token", "previous_token", "certificate", "key"):
        held.pop(secret, None)
    held["ready_in_s"] = max(0.0, held.pop("ready_at") - time.monotonic())
    return {"vmid": container.vmid, "address": container.address, "tls": agent.certificate is not None, **held}


async def _body(request: web.Request, kind: type[Order]) -> Order:
    """The validated body; what is wrong with it is a 422 that names the field."""
    raw = await read_json(request)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise Refused(problem(422, f"{field}: {first['msg']}", field=field)) from None
