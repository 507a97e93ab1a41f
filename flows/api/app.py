"""The two applications. What one listener serves is 404 on the other.

=========  ==========================================  ============================================
listener   behind                                      serves
=========  ==========================================  ============================================
public     Traefik                                     customers, by their tokens
control    a literal address of the control plane      the proxy bridge, Prometheus, the operator
=========  ==========================================  ============================================
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse

from flows.api import admin, catalog, health, machines, operations, problems, servers
from flows.api.deps import ApiDeps
from flows.api.shield import Shield

__all__ = ["ApiDeps", "control_app", "public_app"]


def public_app(deps: ApiDeps) -> FastAPI:
    """What customers reach."""
    return _app(deps, "public", (health.router, servers.router, operations.router, catalog.router), by_address=True)


def control_app(deps: ApiDeps) -> FastAPI:
    """What the control plane's own machines and its operator reach. No rate per address: the bridge must always get its answer."""
    return _app(deps, "control", (machines.router, admin.router), by_address=False)


def _app(deps: ApiDeps, listener: str, routers: tuple[APIRouter, ...], *, by_address: bool) -> FastAPI:
    schema = "/api/openapi.json" if listener == "public" else None
    app = FastAPI(
        title=f"zlh {listener}", openapi_url=schema, docs_url=None, redoc_url=None, default_response_class=JSONResponse, redirect_slashes=False
    )
    app.state.deps = deps
    problems.install(app)
    for router in routers:
        app.include_router(router)
    app.add_middleware(Shield, deps=deps, listener=listener, by_address=by_address)
    return app
