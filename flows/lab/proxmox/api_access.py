"""``/version`` and ``/access``."""

from __future__ import annotations

from typing import Any

from flows.lab.proxmox.params import TEXT, P
from flows.lab.proxmox.routing import Call, route


def release(call: Call) -> dict[str, str]:
    version = call.cluster.config.version
    return {"version": version, "release": ".".join(version.split(".")[:2]), "repoid": "0123456789abcdef"}


@route("GET", "/version")
async def version(call: Call) -> Any:
    return release(call)


@route("GET", "/nodes/{node}/version")
async def node_version(call: Call) -> Any:
    return release(call)


@route(
    "POST",
    "/access/ticket",
    params={
        "username": P(optional=False, max_length=64),
        "password": P(optional=False),
        "realm": P(max_length=32),
        "otp": TEXT,
        "path": P(max_length=64),
        "privs": P(max_length=64),
        "tfa-challenge": TEXT,
        "new-format": P("boolean"),
    },
)
async def ticket(call: Call) -> Any:
    user = call.params["username"]
    if "@" not in user:
        user = f"{user}@{call.params.get('realm', 'pam')}"
    answer = call.cluster.auth.login(user, call.params["password"])
    if call.cluster.config.cluster is not None:
        answer["clustername"] = call.cluster.config.cluster
    return answer


@route("GET", "/access/permissions", params={"path": TEXT, "userid": TEXT})
async def permissions(call: Call) -> Any:
    userid = call.params.get("userid", call.identity.auth_id)
    if userid not in (call.identity.auth_id, call.identity.user):
        call.identity.require("/access", "Sys.Audit")
    path = call.params.get("path")
    if path is None:
        return call.identity.listing()
    held = call.identity.on(path)
    return {path: dict.fromkeys(sorted(held), 1)} if held else {}
