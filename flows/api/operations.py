"""The customers' routes about operations: look, cancel, retry."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from flows.api.auth import CallerOf, CallersRoute
from flows.api.deps import ApiDeps
from flows.api.problems import Problem
from flows.api.servers import ordered, owned
from flows.api.views import operation_view
from flows.domain.intake import Ordered
from flows.domain.operation import Operation
from flows.domain.server import Server
from flows.state import journal, operations, orders
from flows.state.database import Tx
from flows.state.tokens import Caller

router = APIRouter(route_class=CallersRoute)


@router.get("/api/operations/{operation_id:uuid}")
async def show(operation_id: uuid.UUID, caller: CallerOf, request: Request) -> JSONResponse:
    """One operation, step by step."""
    deps: ApiDeps = request.app.state.deps
    async with deps.database.read() as tx:
        operation, server = await _owned(tx, operation_id, caller)
        rows = await journal.rows(tx, operation.id)
    view = operation_view(operation, server.ctype, rows, whole_error=caller.role == "admin")
    return JSONResponse(view, headers={"Cache-Control": "no-store"})


@router.post("/api/operations/{operation_id:uuid}/cancel", status_code=202)
async def cancel(operation_id: uuid.UUID, caller: CallerOf, request: Request) -> JSONResponse:
    """Takes a creation back, any time before activation."""
    deps: ApiDeps = request.app.state.deps

    async def work(tx: Tx) -> Ordered:
        await _owned(tx, operation_id, caller)
        return await orders.cancel(tx, str(operation_id), caller.actor)

    return ordered(deps, await deps.database.apply(work))


@router.post("/api/operations/{operation_id:uuid}/retry", status_code=202)
async def retry(operation_id: uuid.UUID, caller: CallerOf, request: Request) -> JSONResponse:
    """Tries a failed operation again, once everything of it is cleaned up."""
    deps: ApiDeps = request.app.state.deps

    async def work(tx: Tx) -> Ordered:
        await _owned(tx, operation_id, caller)
        return await orders.retry(tx, str(operation_id), caller.actor, place=deps.place, ranges=deps.ranges, cleanup=caller.role == "admin")

    return ordered(deps, await deps.database.apply(work))


async def _owned(tx: Tx, operation_id: uuid.UUID, caller: Caller) -> tuple[Operation, Server]:
    operation = await operations.get(tx, str(operation_id))
    if operation is None:
        raise Problem("not_found")
    return operation, await owned(tx, operation.server_id, caller)
