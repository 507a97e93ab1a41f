"""Whether this process can take orders: for Traefik and ``zlh doctor``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from flows.api.deps import ApiDeps
from flows.state.database import ping

router = APIRouter()


@router.get("/healthz")
async def healthz(request: Request) -> JSONResponse:
    """200 while the database answers, else 503."""
    deps: ApiDeps = request.app.state.deps
    await ping(deps.database)
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})
