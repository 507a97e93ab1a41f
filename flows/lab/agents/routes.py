"""The HTTP face of an agent, as the product's contract has it.

Every route needs the server's bearer token. Mutating ones carry ``X-ZLH-Lease-Token``; lower than seen is 412.
``GET /health /ready /status /jobs /jobs/{id} /dev/codeserver`` · ``POST /game/{start,stop,restart}``,
``POST /dev/codeserver/{start,stop,restart}`` → 202 ``{"job": {…}}``. Errors are problem documents.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from flows.lab.agents.workload import InProgress, Workload
from flows.lab.faults import Faults, Mode, middleware
from flows.lab.serving import bearer_is, lease_token, problem, refusals, refuse, unauthorized
from flows.lab.world import LabContainer

#: Seconds between two looks at whether a frozen process was thawed.
THAW_POLL_S = 0.05
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build(container: LabContainer, workload: Workload, faults: Faults) -> web.Application:
    """The application that answers for one container."""
    face = _Face(container, workload, faults)
    app = web.Application(
        middlewares=[face.frozen, middleware(faults, f"agent:{container.vmid}"), middleware(faults, "agents"), refusals, face.authenticate],  # type: ignore[list-item] # aiohttp types middlewares loosely
        client_max_size=65_536,
    )
    app.router.add_get("/health", face.health)
    app.router.add_get("/ready", face.ready)
    app.router.add_get("/status", face.status)
    app.router.add_get("/jobs", face.jobs)
    app.router.add_get("/jobs/{id}", face.job)
    app.router.add_get("/dev/codeserver", face.codeserver)
    app.router.add_post("/game/{action:start|stop|restart}", face.game)
    app.router.add_post("/dev/codeserver/{action:start|stop|restart}", face.dev)
    return app


class _Face:
    def __init__(self, container: LabContainer, workload: Workload, faults: Faults) -> None:
        self._container, self._workload, self._faults = container, workload, faults
        self._agent = workload.agent

    @web.middleware
    async def frozen(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A stopped process accepts by way of its kernel and answers when it is continued, however late that is."""
        while self._agent.frozen:  # noqa: ASYNC110 - the flag belongs to the world, which knows no events
            await asyncio.sleep(THAW_POLL_S)
        return await handler(request)

    @web.middleware
    async def authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not bearer_is(request, self._agent.token, self._agent.previous_token):
            return unauthorized()
        return await handler(request)

    async def health(self, request: web.Request) -> web.Response:
        agent = self._agent
        return web.json_response({"version": agent.version, "started_at": agent.started_at, "server_id": agent.claims or agent.server_id})

    async def ready(self, request: web.Request) -> web.Response:
        ready, reason = self._workload.ready
        return web.json_response({"ready": True}) if ready else problem(503, reason, ready=False, reason=reason)

    async def status(self, request: web.Request) -> web.Response:
        agent, load = self._agent, self._workload
        ready, reason = load.ready
        since = load.running_since
        memory = int(self._container.config.get("memory", 512)) * 1_048_576
        answer = {
            "server_id": agent.claims or agent.server_id,
            "version": agent.version,
            "state": load.state,
            "ready": ready,
            "reason": reason,
            "operation": load.live.kind if load.live else None,
            "job": load.live.id if load.live else None,
            "maintenance": False,
            "uptime_s": round(time.monotonic() - since, 3) if since is not None else 0.0,
            "restarts": agent.restarts,
            "last_crash": agent.last_crash,
            "players": agent.players if load.state == "running" and agent.kind == "game" else None,
            "memory": {"used": memory // 2 if load.state == "running" else memory // 8, "total": memory},
            "disk": {"used": 1_073_741_824, "total": 4_294_967_296},
            "provisioning_complete": agent.prepared,
            "missing": [] if agent.prepared else ["workload"],
        }
        if self._faults.hit(f"agent:{self._container.vmid}", "GET /status", Mode.PARTIAL) or self._faults.hit("agents", "GET /status", Mode.PARTIAL):
            del answer["state"], answer["ready"]
        return web.json_response(answer)

    async def jobs(self, request: web.Request) -> web.Response:
        wanted = {key: request.query[key] for key in ("kind", "state") if key in request.query}
        found = [job.as_json() for job in self._workload.jobs]
        return web.json_response({"jobs": [job for job in found if all(job[key] == value for key, value in wanted.items())]})

    async def job(self, request: web.Request) -> web.Response:
        for job in self._workload.jobs:
            if job.id == request.match_info["id"]:
                return web.json_response(job.as_json())
        return problem(404, f"no job {request.match_info['id']}")

    async def codeserver(self, request: web.Request) -> web.Response:
        if self._agent.kind != "dev" or not self._agent.code_server:
            return problem(409, "code-server is not installed")
        return web.json_response({"state": self._workload.state})

    async def game(self, request: web.Request) -> web.Response:
        return self._act(request, "game", "this is a developer container")

    async def dev(self, request: web.Request) -> web.Response:
        return self._act(request, "dev", "code-server is not installed")

    def _act(self, request: web.Request, kind: str, otherwise: str) -> web.Response:
        """One mutating call: fencing first, durably, then the order. Recorded whatever comes of it."""
        call: dict[str, Any] = {"at": time.time(), "method": request.method, "path": request.path, "lease_token": None, "effect": False}
        self._agent.calls.append(call)
        try:
            response = self._order(request, kind, otherwise, call)
        except Exception as refused:
            call["status"] = getattr(getattr(refused, "response", None), "status", 500)
            raise
        call["status"] = response.status
        return response

    def _order(self, request: web.Request, kind: str, otherwise: str, call: dict[str, Any]) -> web.Response:
        agent = self._agent
        token = call["lease_token"] = lease_token(request)
        if token < agent.highest_lease:
            raise refuse(problem(412, f"lease token {token} is older than {agent.highest_lease}", highest=agent.highest_lease))
        agent.highest_lease = token
        if agent.kind != kind or (kind == "dev" and not agent.code_server):
            raise refuse(problem(409, otherwise))
        action = request.match_info["action"]
        if not agent.prepared and action != "stop":
            raise refuse(problem(503, "provisioning is not complete", missing=["workload"], headers={"Retry-After": "5"}))
        try:
            job, call["effect"] = getattr(self._workload, action)()
        except InProgress as busy:
            raise refuse(
                problem(409, f"{busy.job.kind} is in progress", operation=busy.job.kind, job=busy.job.id, headers={"Retry-After": "1"})
            ) from None
        call["job"] = job.id
        return web.json_response({"job": job.as_json()}, status=202, headers={"Location": f"/jobs/{job.id}"})
