"""The bridge's HTTP face. Bearer token; ``GET /servers`` → ``{"servers": [{name, address, port, lease_token}], "complete"}``,
``PUT /servers/{name}`` ``{address, port}`` → 200, ``DELETE /servers/{name}`` → 204 (unknown too), ``GET /status``, ``GET /metrics``,
``POST /rehydrate`` → 200 after a complete pull, else 502; its body, if any, ``{"leave": [name, …]}``, names registrations to leave as they
are. PUT and DELETE carry ``X-ZLH-Lease-Token``; lower than seen is 412, a bad address 422.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic import SecretStr, ValidationError

from flows.errors import MisconfiguredSetting
from flows.lab.bridge.backends import Backend, Backends, Superseded
from flows.lab.bridge.front import Front
from flows.lab.bridge.rehydrate import Kept, Source
from flows.lab.config import LabConfig, split_bind
from flows.lab.faults import Faults, Handler, Mode, middleware
from flows.lab.part import PartError
from flows.lab.serving import Refused, Site, bearer_is, lease_token, problem, read_json, refusals, refuse, settle, unauthorized
from flows.lab.world import World


async def start(config: LabConfig, world: World, faults: Faults) -> BridgePart:
    """Raises MisconfiguredSetting where ``bridge.backends_url`` names a host instead of an address."""
    part = BridgePart(config, faults)
    await part.open()
    return part


class BridgePart:
    """``inspect()["calls"]`` lists every PUT, DELETE and rehydrate, with its lease token and whether it changed anything; it outlives
    restarts, registrations do not."""

    name = "bridge"

    def __init__(self, config: LabConfig, faults: Faults) -> None:
        self._config, self._faults = config.bridge, faults
        self._source = self._make_source(config.bridge.backends_url, config.bridge.backends_token)
        self._backends = Backends()
        self._calls: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._restarts = 0
        self._rehydrating: asyncio.Task[None] | None = None
        self.site = Site(split_bind(config.bridge.bind), self._build)
        self.front = Front(split_bind(config.bridge.players_bind), config.dns.zone, lambda: self._backends)

    @property
    def endpoints(self) -> dict[str, str]:
        return {"url": self.site.url, "players": f"{self.front.host}:{self.front.port}"}

    async def open(self) -> None:
        self._backends = Backends()
        await self.site.open()
        await self.front.open()
        self._rehydrate_in_background()

    async def stop(self) -> None:
        await settle(self._rehydrating)
        self._rehydrating = None
        await self.site.close()
        await self.front.close()

    async def restart(self) -> None:
        """Everything registered is forgotten, players are cut off, and it asks for the listing again."""
        await self.stop()
        self._restarts += 1
        await self.open()

    def inspect(self) -> dict[str, Any]:
        backends = self._backends
        return {
            "servers": [backend.model_dump() for backend in backends.registered.values()],
            "tokens": dict(backends.tokens),
            "epoch": backends.epoch,
            "outcome": backends.outcome,
            "players": backends.players,
            "restarts": self._restarts,
            "calls": list(self._calls),
        }

    async def manipulate(self, op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``register`` (``name``, ``address``, ``port``) and ``deregister`` (``name``), without any lease token;
        ``configure`` (``backends_url``, ``token``)."""
        if op == "configure":
            try:
                self._source = self._make_source(str(arguments.get("backends_url", "")), SecretStr(str(arguments.get("token", ""))))
            except MisconfiguredSetting as error:
                raise PartError(str(error)) from error
            self._rehydrate_in_background()
        elif op == "register":
            try:
                backend = Backend.model_validate({key: arguments.get(key) for key in ("name", "address", "port")})
            except ValidationError as error:
                raise PartError(_say(error)) from None
            self._backends.meddle(backend.name, backend)
        elif op == "deregister":
            if str(arguments.get("name")) not in self._backends.registered:
                raise PartError(f"name: {arguments.get('name')!r} is not registered")
            self._backends.meddle(str(arguments["name"]), None)
        else:
            raise PartError(f"op: {op!r} is none of register, deregister, configure")
        return {"servers": sorted(self._backends.registered)}

    def _make_source(self, url: str, token: SecretStr) -> Source | None:
        """None where the lab was told not to rehydrate; a real bridge refuses to start."""
        return Source(url, token, max(0.01, self._config.rehydrate_retry_s)) if url else None

    def _rehydrate_in_background(self) -> None:
        if self._rehydrating is not None:
            self._rehydrating.cancel()
        self._rehydrating = asyncio.create_task(self._source.until_complete(self._backends)) if self._source is not None else None

    # --- HTTP ----------------------------------------------------------------------------------------------------

    def _build(self) -> web.Application:
        app = web.Application(middlewares=[middleware(self._faults, "bridge"), refusals, self._authenticate], client_max_size=65_536)  # type: ignore[list-item] # aiohttp types middlewares loosely
        app.router.add_get("/servers", self._list)
        app.router.add_put("/servers/{name}", self._put)
        app.router.add_delete("/servers/{name}", self._delete)
        app.router.add_get("/status", self._status)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/rehydrate", self._rehydrate)
        return app

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not bearer_is(request, self._config.token.get_secret_value()):
            return unauthorized()
        return await handler(request)

    async def _list(self, request: web.Request) -> web.Response:
        servers = [backend.model_dump() for backend in self._backends.registered.values()]
        partial = self._faults.hit("bridge", f"{request.method} {request.path}", Mode.PARTIAL) is not None
        return web.json_response({"servers": servers[: len(servers) // 2] if partial else servers, "complete": not partial})

    async def _put(self, request: web.Request) -> web.Response:
        call = self._record(request)
        try:
            token = call["lease_token"] = lease_token(request)
            body = await read_json(request)
            try:
                backend = Backend.model_validate({**body, "name": request.match_info["name"], "lease_token": token})
            except ValidationError as error:
                raise refuse(problem(422, _say(error))) from None
            try:
                call["effect"] = self._backends.put(backend)
            except Superseded as superseded:
                raise _fenced(token, superseded.highest) from None
        except Refused as refused:
            call["status"] = refused.response.status
            raise
        return web.json_response(backend.model_dump())

    async def _delete(self, request: web.Request) -> web.Response:
        call = self._record(request)
        try:
            token = call["lease_token"] = lease_token(request)
            try:
                call["effect"] = self._backends.remove(request.match_info["name"], token)
            except Superseded as superseded:
                raise _fenced(token, superseded.highest) from None
        except Refused as refused:
            call["status"] = refused.response.status
            raise
        call["status"] = 204
        return web.Response(status=204)

    def _record(self, request: web.Request) -> dict[str, Any]:
        call: dict[str, Any] = {
            "at": time.time(),
            "method": request.method,
            "name": request.match_info.get("name", "rehydrate"),
            "lease_token": None,
            "status": 200,
            "effect": False,
        }
        self._calls.append(call)
        return call

    async def _status(self, request: web.Request) -> web.Response:
        backends = self._backends
        return web.json_response(
            {
                "uptime_s": round(time.monotonic() - backends.started, 3),
                "backends": len(backends.registered),
                "players": backends.players,
                "rehydrate": {"at": backends.rehydrated_at, "outcome": backends.outcome, "epoch": max(0, backends.epoch)},
            }
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        backends = self._backends
        lines = [
            "# TYPE zlh_bridge_uptime_seconds gauge",
            f"zlh_bridge_uptime_seconds {time.monotonic() - backends.started:.3f}",
            "# TYPE zlh_bridge_backends gauge",
            f"zlh_bridge_backends {len(backends.registered)}",
            "# TYPE zlh_bridge_players gauge",
            f"zlh_bridge_players {backends.players}",
            "# TYPE zlh_bridge_rehydrates_total counter",
            *(f'zlh_bridge_rehydrates_total{{outcome="{outcome}"}} {count}' for outcome, count in sorted(backends.rehydrates.items())),
        ]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    async def _rehydrate(self, request: web.Request) -> web.Response:
        call, before = self._record(request), self._places()
        try:
            response = await self._pull(request)
        except Refused as refused:
            call["status"] = refused.response.status
            raise
        call |= {"status": response.status, "effect": self._places() != before}
        return response

    def _places(self) -> dict[str, tuple[str, int]]:
        return {name: (backend.address, backend.port) for name, backend in self._backends.registered.items()}

    async def _pull(self, request: web.Request) -> web.Response:
        if self._source is None:
            return problem(503, "bridge.backends_url is not set", headers={"Retry-After": "60"})
        body = await read_json(request) if request.body_exists else {}
        leave = body.get("leave", [])
        if not isinstance(leave, list) or not all(isinstance(name, str) for name in leave):
            raise refuse(problem(422, "leave: must be a list of names"))
        try:
            await self._source.pull(self._backends, frozenset(leave))
        except Kept as kept:
            # Another try by itself takes in everything: what is to be left alone by then, only the caller knows.
            if not leave and (self._rehydrating is None or self._rehydrating.done()):
                self._rehydrate_in_background()
            return problem(502, f"registrations are kept as they are: {kept}")
        return web.json_response({"outcome": "complete", "backends": len(self._backends.registered), "epoch": self._backends.epoch})


def _fenced(token: int, highest: int) -> Refused:
    return refuse(problem(412, f"lease token {token} is older than {highest}", highest=highest))


def _say(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
