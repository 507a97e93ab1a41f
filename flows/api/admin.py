"""Routes of the operator (admin tokens, control listener): customers and brakes.

For programs of the control plane. The command line does the same in the database itself, so that it works while no API runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from flows.api.auth import Admin, AdminsRoute
from flows.api.deps import ApiDeps
from flows.api.models import CustomerBody, PauseBody, ResumeBody
from flows.api.problems import invalid
from flows.api.views import View, time_of
from flows.domain.event import Event, EventKind
from flows.domain.finding import BrakeRow, BrakeScope
from flows.errors import NotFound
from flows.state import accounts, audit, brakes, customers, nodes, outbox, servers
from flows.state.customers import Customer
from flows.state.database import Tx
from flows.state.tokens import Caller

router = APIRouter(prefix="/api/admin", route_class=AdminsRoute)


@router.get("/customers")
async def list_customers(caller: Admin, request: Request) -> JSONResponse:
    deps: ApiDeps = request.app.state.deps
    async with deps.database.read() as tx:
        found = await customers.list_(tx)
    return JSONResponse({"customers": [_customer(c) for c in found]})


@router.post("/customers", status_code=201)
async def add_customer(body: CustomerBody, caller: Admin, request: Request) -> JSONResponse:
    deps: ApiDeps = request.app.state.deps
    try:
        async with deps.database.write() as tx:
            customer = await customers.add(tx, body.name, body.plan)
            await audit.append(tx, caller.actor, "customer.add", f"customer:{customer.id}", detail={"name": body.name, "plan": body.plan})
    except NotFound as error:
        raise invalid([("plan", "no such plan")]) from error
    return JSONResponse(_customer(customer), 201)


@router.post("/customers/{customer_id:uuid}/suspend")
async def suspend(customer_id: uuid.UUID, caller: Admin, request: Request) -> JSONResponse:
    return await _billing(request, customer_id, caller, accounts.suspend)


@router.post("/customers/{customer_id:uuid}/resume")
async def resume(customer_id: uuid.UUID, caller: Admin, request: Request) -> JSONResponse:
    return await _billing(request, customer_id, caller, accounts.resume)


@router.get("/brakes")
async def list_brakes(caller: Admin, request: Request) -> JSONResponse:
    deps: ApiDeps = request.app.state.deps
    async with deps.database.read() as tx:
        found = await brakes.active(tx)
    return JSONResponse({"brakes": [_brake(b) for b in found]})


@router.post("/brakes/pause", status_code=201)
async def pause(body: PauseBody, caller: Admin, request: Request) -> JSONResponse:
    """Stops all automation on a server, a host or everything."""
    deps: ApiDeps = request.app.state.deps
    async with deps.database.write() as tx:
        if body.until is not None and body.until <= tx.now:
            raise invalid([("until", "is in the past")])
        if not await _exists(tx, body.scope, body.target):
            raise invalid([("target", f"no such {body.scope}")])
        row = await brakes.pause(tx, BrakeScope(body.scope), body.target, body.reason, caller.actor, body.until)
        where = body.target or "everything"
        event = Event(
            EventKind.AUTOMATION_PAUSED,
            key=f"paused/{row.id}",
            what=f"{caller.actor} paused automation: {body.reason}",
            where=where,
            next=f"until {time_of(body.until) or 'resumed'}",
            command="zlh resume" + ("" if body.scope == "all" else f" --{body.scope} {body.target}"),
        )
        await outbox.put(tx, event, deps.route(event, tx.now))
    return JSONResponse(_brake(row), 201)


@router.post("/brakes/resume")
async def release(body: ResumeBody, caller: Admin, request: Request) -> JSONResponse:
    """Lifts the pauses of exactly that target; none is fine."""
    deps: ApiDeps = request.app.state.deps
    async with deps.database.write() as tx:
        lifted = await brakes.resume(tx, BrakeScope(body.scope), body.target, caller.actor)
        for row in lifted:
            what = f"{caller.actor} resumed automation"
            event = Event(EventKind.AUTOMATION_RESUMED, f"resumed/{row.id}", what, row.target or "everything", over_of=EventKind.AUTOMATION_PAUSED)
            await outbox.put(tx, event, deps.route(event, tx.now))
    return JSONResponse({"lifted": [_brake(b) for b in lifted]})


async def _exists(tx: Tx, scope: str, target: str) -> bool:
    """A pause of what does not exist would stop nothing and look as if it did."""
    if scope == "host":
        return any(node.name == target for node in await nodes.list_(tx))
    return scope == "all" or await servers.get(tx, target) is not None


async def _billing(request: Request, customer_id: uuid.UUID, caller: Caller, change: Callable[[Tx, str, str], Awaitable[bool]]) -> JSONResponse:
    deps: ApiDeps = request.app.state.deps
    async with deps.database.write() as tx:
        changed = await change(tx, str(customer_id), caller.actor)
        customer = await customers.get(tx, str(customer_id))
    assert customer is not None  # its row is locked
    return JSONResponse(_customer(customer) | {"changed": changed})


def _customer(customer: Customer) -> View:
    return {
        "id": customer.id,
        "name": customer.name,
        "plan": customer.plan,
        "billing": customer.billing.value,
        "created_at": time_of(customer.created_at),
    }


def _brake(row: BrakeRow) -> View:
    return {
        "id": row.id,
        "scope": row.scope.value,
        "target": row.target,
        "reason": row.reason,
        "actor": row.actor,
        "created_at": time_of(row.created_at),
        "until": time_of(row.until),
    }
