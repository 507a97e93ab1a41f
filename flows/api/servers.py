"""Routes about servers: order, list, look, start, stop, restart, delete, and for admins a deployment of the agent."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from flows.api.auth import Admin, CallerOf, CallersRoute
from flows.api.creation import order_of, submit
from flows.api.deps import ApiDeps
from flows.api.models import CreateBody
from flows.api.problems import Problem
from flows.api.views import View, brief, full_view, server_view, status_view
from flows.domain.intake import Ordered
from flows.domain.operation import OperationKind
from flows.domain.server import Server, ServerState
from flows.state import orders, server_views, servers
from flows.state.database import Tx
from flows.state.server_views import KnownServer
from flows.state.tokens import Caller

router = APIRouter(route_class=CallersRoute)
_FRESH = {"Cache-Control": "no-store"}


@router.post("/api/servers/create", status_code=202)
@router.post("/api/instances", status_code=202, name="create_instance")
async def create(body: CreateBody, caller: CallerOf, request: Request) -> JSONResponse:
    """Records an order; the work begins after the answer."""
    deps: ApiDeps = request.app.state.deps
    accepted = await submit(deps, order_of(body, caller))
    return ordered(deps, Ordered(accepted.server, accepted.operation, accepted.deduplicated))


@router.get("/api/servers")
async def list_servers(
    caller: CallerOf,
    request: Request,
    state: ServerState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(max_length=36)] = None,
) -> JSONResponse:
    """The caller's servers in the order of their creation, each with its status; deleted ones only on request. ``next`` is the ``after`` of
    the next page."""
    deps: ApiDeps = request.app.state.deps
    async with deps.database.read() as tx:
        found = await server_views.list_(tx, customer_id=caller.customer_id, state=state, limit=limit + 1, after=after)
        page = [full_view(known, tx.now, deps.players) for known in found[:limit]]
    return JSONResponse({"servers": page, "next": page[-1]["id"] if len(found) > limit else None}, headers=_FRESH)


@router.get("/api/servers/{server_id:uuid}")
async def show(server_id: uuid.UUID, caller: CallerOf, request: Request) -> JSONResponse:
    """One server, with its status."""
    deps: ApiDeps = request.app.state.deps
    async with deps.database.read() as tx:
        view = full_view(await _looked_at(tx, server_id, caller), tx.now, deps.players)
    return JSONResponse(view, headers=_FRESH)


@router.get("/api/servers/{server_id:uuid}/status")
async def status(server_id: uuid.UUID, caller: CallerOf, request: Request) -> JSONResponse:
    """What is known of it: the database and the last observation. Asks no agent, so it answers when none does."""
    deps: ApiDeps = request.app.state.deps
    async with deps.database.read() as tx:
        view = status_view(await _looked_at(tx, server_id, caller), tx.now, deps.players)
    return JSONResponse(view, headers=_FRESH)


@router.post("/api/servers/{server_id:uuid}/start", status_code=202)
async def start(server_id: uuid.UUID, caller: CallerOf, request: Request) -> JSONResponse:
    return await _control(request, server_id, caller, OperationKind.START)


@router.post("/api/servers/{server_id:uuid}/stop", status_code=202)
async def stop(server_id: uuid.UUID, caller: CallerOf, request: Request) -> JSONResponse:
    return await _control(request, server_id, caller, OperationKind.STOP)


@router.post("/api/servers/{server_id:uuid}/restart", status_code=202)
async def restart(server_id: uuid.UUID, caller: CallerOf, request: Request) -> JSONResponse:
    return await _control(request, server_id, caller, OperationKind.RESTART)


@router.post("/api/servers/{server_id:uuid}/deploy-agent", status_code=202)
async def deploy_agent(server_id: uuid.UUID, caller: Admin, request: Request) -> JSONResponse:
    """The pinned release of the agent, with the server's present token and certificate; the workload goes on. Operators alone."""
    return await _control(request, server_id, caller, OperationKind.DEPLOY_AGENT)


@router.post("/api/servers/{server_id:uuid}/restart-agent", status_code=202)
async def restart_agent(server_id: uuid.UUID, caller: Admin, request: Request) -> JSONResponse:
    """The agent's service, through the node; the workload goes on. Operators alone."""
    return await _control(request, server_id, caller, OperationKind.RESTART_AGENT)


@router.delete("/api/servers/{server_id:uuid}", status_code=202)
async def delete(server_id: uuid.UUID, caller: CallerOf, request: Request) -> JSONResponse:
    deps: ApiDeps = request.app.state.deps
    return await _change(deps, server_id, caller, lambda tx: orders.delete(tx, str(server_id), caller.actor, deadline_ms=deps.operation_ms))


async def _control(request: Request, server_id: uuid.UUID, caller: Caller, kind: OperationKind) -> JSONResponse:
    deps: ApiDeps = request.app.state.deps
    return await _change(deps, server_id, caller, lambda tx: orders.control(tx, str(server_id), kind, caller.actor, deadline_ms=deps.operation_ms))


async def _change(deps: ApiDeps, server_id: uuid.UUID, caller: Caller, order: Callable[[Tx], Awaitable[Ordered]]) -> JSONResponse:
    async def work(tx: Tx) -> Ordered:
        await owned(tx, str(server_id), caller)
        return await order(tx)

    return ordered(deps, await deps.database.apply(work))


async def owned(tx: Tx, server_id: str, caller: Caller) -> Server:
    """The server, if it is the caller's (an admin's are all). Raises 404, whether it is nobody's or somebody else's."""
    return _owned(await servers.get(tx, server_id), caller)


async def _looked_at(tx: Tx, server_id: uuid.UUID, caller: Caller) -> KnownServer:
    """As :func:`owned`, with all that is known of it."""
    known = await server_views.get(tx, str(server_id))
    _owned(None if known is None else known.server, caller)
    assert known is not None  # else 404 was raised
    return known


def _owned(server: Server | None, caller: Caller) -> Server:
    if server is None or (caller.role != "admin" and server.customer_id != caller.customer_id):
        raise Problem("not_found")
    return server


def ordered(deps: ApiDeps, done: Ordered) -> JSONResponse:
    """202 with the operation and where to follow it; 200 where nothing was left to do."""
    body: View = {"operation": None, "server": server_view(done.server, deps.players), "deduplicated": done.deduplicated}
    if done.operation is None:
        return JSONResponse(body, 200)
    body["operation"] = brief(done.operation) | {"server_id": done.server.id}
    return JSONResponse(body, 202, {"Location": f"{deps.settings.api.public_url.rstrip('/')}/api/operations/{done.operation.id}"})
