"""What a developer container can be ordered with."""

from __future__ import annotations

import hashlib
import json

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from flows.api.auth import CallerOf, CallersRoute
from flows.api.deps import ApiDeps

router = APIRouter(route_class=CallersRoute)


@router.get("/api/catalog/runtimes")
async def runtimes(caller: CallerOf, request: Request) -> Response:
    """Promoted versions. ``stale``: the artifact server does not answer, this is the last good copy. 503 where there never was one."""
    deps: ApiDeps = request.app.state.deps
    promoted = await deps.promoted.promoted()
    found = sorted((a.name, a.version, a.size, a.sha256) for a in promoted.artifacts if a.kind == "runtime")
    body = {"runtimes": [{"name": n, "version": v, "size_bytes": s, "sha256": h} for n, v, s, h in found], "stale": promoted.stale}
    tag = f'"{hashlib.sha256(json.dumps(body).encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    known = {part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")}
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return JSONResponse(body, headers=headers)
