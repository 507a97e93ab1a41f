"""The control listener's routes for machines: the proxy bridge and Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from flows.api.auth import Machine
from flows.api.deps import ApiDeps
from flows.state import rehydrate
from flows.state.census import census

router = APIRouter(dependencies=[Machine])


@router.get("/internal/proxy/backends")
async def backends(request: Request) -> JSONResponse:
    """Every backend that the proxy may hold. An error is an error: an empty list means that there is none."""
    deps: ApiDeps = request.app.state.deps
    async with deps.database.read() as tx:
        answer = await rehydrate.backends(tx)
    listed = [{"name": b.name, "address": b.address, "port": b.port, "lease_token": b.lease_token} for b in answer.backends]
    return JSONResponse({"epoch": answer.epoch, "complete": True, "backends": listed}, headers={"Cache-Control": "no-store"})


@router.get("/metrics")
async def metrics(request: Request) -> PlainTextResponse:
    """Prometheus text."""
    deps: ApiDeps = request.app.state.deps
    async with deps.database.read() as tx:
        counted = await census(tx)
    lines = ["# HELP zlh_api_responses_total Answers by listener and status.", "# TYPE zlh_api_responses_total counter"]
    for (listener, status), count in sorted(deps.counts.items()):
        lines.append(f'zlh_api_responses_total{{listener="{listener}",status="{status}"}} {count}')
    for name, help_, label, values in (
        ("zlh_servers", "Servers by state.", "state", counted.servers),
        ("zlh_operations_live", "Operations that hold a server, by state.", "state", counted.operations),
    ):
        lines += [f"# HELP {name} {help_}", f"# TYPE {name} gauge"]
        lines += [f'{name}{{{label}="{key}"}} {value}' for key, value in sorted(values.items())]
    if counted.last_sweep_at is not None:
        lines += ["# HELP zlh_last_sweep_finished_seconds When the last sweep finished.", "# TYPE zlh_last_sweep_finished_seconds gauge"]
        lines.append(f"zlh_last_sweep_finished_seconds {counted.last_sweep_at / 1000:.3f}")
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")
