"""``/nodes/{node}/tasks``: status, log and end of what was started."""

from __future__ import annotations

from typing import Any

from flows.lab.proxmox.params import BOOL, COUNT, P
from flows.lab.proxmox.routing import Answer, Call, route
from flows.lab.proxmox.tasks import Task


def _own_or_audited(call: Call) -> Task:
    """Raises PveError 403 for somebody else's task without Sys.Audit on its node."""
    task = call.cluster.tasks.find(call.node, call.params["upid"])
    if task.identity.auth_id != call.identity.auth_id:
        call.identity.require(f"/nodes/{call.node}", "Sys.Audit")
    return task


def _matches(task: Task, params: dict[str, Any]) -> bool:
    if params.get("errors") and (task.running or task.status == "OK"):
        return False
    if "typefilter" in params and task.kind != params["typefilter"]:
        return False
    if "vmid" in params and task.id != str(params["vmid"]):
        return False
    if "userfilter" in params and params["userfilter"].lower() not in task.identity.auth_id.lower():
        return False
    return bool(params.get("since", 0) <= task.started <= params.get("until", float("inf")))


@route(
    "GET",
    "/nodes/{node}/tasks",
    params={
        "errors": BOOL,
        "limit": COUNT,
        "since": P("integer"),
        "source": P(enum=("archive", "active", "all")),
        "start": COUNT,
        "statusfilter": P(),
        "typefilter": P(),
        "until": P("integer"),
        "userfilter": P(),
        "vmid": P("integer", minimum=100),
    },
)
async def tasks(call: Call) -> Any:
    source = call.params.get("source", "archive")
    everything = call.identity.may(f"/nodes/{call.node}", "Sys.Audit")
    found = [
        t
        for t in call.cluster.tasks.newest_first()
        if t.node == call.node
        and (everything or t.identity.auth_id == call.identity.auth_id)
        and (source == "all" or t.running == (source == "active"))
        and _matches(t, call.params)
    ]
    start, limit = call.params.get("start", 0), call.params.get("limit", 50)
    page = found[start : start + limit] if limit else found[start:]
    return Answer([t.entry() for t in page], {"total": len(found)})


@route("GET", "/nodes/{node}/tasks/{upid}/status")
async def status(call: Call) -> Any:
    return _own_or_audited(call).state()


@route("GET", "/nodes/{node}/tasks/{upid}/log", params={"start": COUNT, "limit": COUNT, "download": BOOL})
async def log(call: Call) -> Any:
    lines = _own_or_audited(call).lines
    start, limit = call.params.get("start", 0), call.params.get("limit", 50)
    page = lines[start : start + limit] if limit else lines[start:]
    return Answer([{"n": n, "t": line} for n, line in enumerate(page, start + 1)] or [{"n": 1, "t": "no content"}], {"total": len(lines)})


@route("DELETE", "/nodes/{node}/tasks/{upid}")
async def stop(call: Call) -> Any:
    task = call.cluster.tasks.find(call.node, call.params["upid"])
    if task.identity.auth_id != call.identity.auth_id:
        call.identity.require(f"/nodes/{call.node}", "Sys.Modify")
    if task.running and task.job is not None:
        task.job.cancel()
    return None
