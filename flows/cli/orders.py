"""Commands that order work: ``create``, ``delete``, ``start``, ``stop``, ``restart``, and ``operations follow|cancel|retry``.

All go through the same API as customers, with the admin token of ``ZLH_API__ADMIN_TOKEN``.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Annotated, Any

import httpx
import typer

from flows.cli import output, session
from flows.errors import AutomationError, BadInput, Conflict, Forbidden, MisconfiguredSetting, NotFound, Unauthorized, Unreachable
from flows.state import customers, operations, servers
from flows.state.database import Tx

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="follow the operation to its end")]
ENDED = frozenset({"succeeded", "failed", "cancelled"})


def add_to(app: typer.Typer) -> None:
    for command in (create, delete, start, stop, restart):
        app.command()(command)
    group = next(g.typer_instance for g in app.registered_groups if g.name == "operations")
    assert group is not None
    group.command()(follow)
    group.command()(cancel)
    group.command()(retry)


def call(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """A call of the public API. Problem documents become errors of ours; no answer is Unreachable."""
    settings = session.settings()
    token = settings.api.admin_token.get_secret_value()
    if not token:
        raise MisconfiguredSetting("ZLH_API__ADMIN_TOKEN", why="is not set", remedy="zlh token create --admin, then set it or its _FILE")
    url = f"http://{settings.api.public_bind}{path}"
    try:
        answer = httpx.request(method, url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=15)
    except httpx.HTTPError as error:
        raise Unreachable(f"API at {settings.api.public_bind}", why=type(error).__name__, remedy="is zlh-api running? zlh doctor") from error
    try:
        content = answer.json() if answer.content else {}
    except ValueError as error:
        raise AutomationError(f"API at {settings.api.public_bind}", why=f"{answer.status_code} without JSON") from error
    if answer.is_error:
        raise _refusal(method, path, answer.status_code, content)
    return dict(content)


def _refusal(method: str, path: str, status: int, problem: dict[str, Any]) -> AutomationError:
    why = str(problem.get("detail") or problem.get("title") or status)
    fields = problem.get("errors")
    if fields:
        why += ": " + "; ".join(f"{e.get('field')}: {e.get('problem', e.get('message', ''))}" for e in fields if isinstance(e, dict))
    kinds: dict[int, type[AutomationError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 503: Unreachable}
    if status == 422:
        return BadInput("request", path, why=why)
    return kinds.get(status, AutomationError)(f"{method} {path}", why=why, remedy=str(problem.get("remedy", "")))


def _server_id(given: str) -> str:
    async def look(tx: Tx) -> str:
        named = await servers.by_name(tx, given)
        if named is not None:
            return named.id
        return output.by_prefix([s.id for s in await servers.list_(tx)], given, "server")

    return session.read(look)


def _operation_id(given: str) -> str:
    async def look(tx: Tx) -> str:
        return output.by_prefix([o.id for o in await operations.list_(tx, limit=10_000)], given, "operation")

    return session.read(look)


def create(
    name: str,
    customer: Annotated[str, typer.Option(help="name or id of the customer")],
    kind: Annotated[str, typer.Option("--type", help="game or dev")] = "game",
    flavor: Annotated[str, typer.Option(help="what runs in it")] = "fabric",
    version: Annotated[str, typer.Option(help="its version")] = "1.21.4",
    memory: Annotated[int, typer.Option(help="memory, MiB")] = 2048,
    cores: Annotated[int, typer.Option(help="cores")] = 2,
    disk: Annotated[int, typer.Option(help="disk, GiB")] = 10,
    nonce: Annotated[str | None, typer.Option(help="the same nonce never creates twice; default: a new one")] = None,
    wait: Wait = True,
    json: output.Json = False,
) -> None:
    """Order a server for a customer."""

    async def look(tx: Tx) -> str:
        found = await customers.by_name(tx, customer) or await customers.get(tx, customer)
        if found is None:
            raise NotFound(f"customer {customer}", why="there is none", remedy="zlh customers list")
        return found.id

    body = {
        "ctype": kind,
        "name": name,
        "flavor": flavor,
        "version": version,
        "memory_mb": memory,
        "cores": cores,
        "disk_gb": disk,
        "request_nonce": nonce or uuid.uuid4().hex,
        "customer_id": session.read(look),
    }
    _ordered(call("POST", "/api/servers/create", body), wait, json)


def delete(server: str, yes: output.Yes = False, wait: Wait = True, json: output.Json = False) -> None:
    """Delete a server for good."""
    server_id = _server_id(server)
    output.confirm(f"delete {server} and everything in it?", yes)
    _ordered(call("DELETE", f"/api/servers/{server_id}"), wait, json)


def start(server: str, wait: Wait = True, json: output.Json = False) -> None:
    """Start a server."""
    _ordered(call("POST", f"/api/servers/{_server_id(server)}/start"), wait, json)


def stop(server: str, wait: Wait = True, json: output.Json = False) -> None:
    """Stop a server gracefully; it stays stopped until a person starts it."""
    _ordered(call("POST", f"/api/servers/{_server_id(server)}/stop"), wait, json)


def restart(server: str, wait: Wait = True, json: output.Json = False) -> None:
    """Restart a server: off the proxy, restarted, ready, back on it."""
    _ordered(call("POST", f"/api/servers/{_server_id(server)}/restart"), wait, json)


def follow(operation: Annotated[str, typer.Argument(metavar="ID")], json: output.Json = False) -> None:
    """Live steps of an operation, and its end. Ctrl-C leaves it running."""
    _follow(_operation_id(operation), json)


def cancel(operation: Annotated[str, typer.Argument(metavar="ID")], wait: Wait = True, json: output.Json = False) -> None:
    """Stop a creation and undo what it did."""
    _ordered(call("POST", f"/api/operations/{_operation_id(operation)}/cancel"), wait, json)


def retry(operation: Annotated[str, typer.Argument(metavar="ID")], wait: Wait = True, json: output.Json = False) -> None:
    """Try a failed operation once more."""
    _ordered(call("POST", f"/api/operations/{_operation_id(operation)}/retry"), wait, json)


def _ordered(answer: dict[str, Any], wait: bool, json: bool) -> None:
    operation = answer.get("operation") if isinstance(answer.get("operation"), dict) else answer
    operation_id = str((operation or {}).get("id", ""))
    if not operation_id or (operation or {}).get("state") is None:
        output.data(answer) if json else output.text("nothing to do: it already is so")
        return
    if wait:
        _follow(operation_id, json)
    elif json:
        output.data(answer)
    else:
        output.text(f"operation {operation_id}  (zlh operations follow {operation_id[-8:]})")


def _follow(operation_id: str, json: bool) -> None:
    """Prints each step as it begins; exit 1 unless it succeeded."""
    began, step, last = time.monotonic(), None, {}
    try:
        while True:
            last = call("GET", f"/api/operations/{operation_id}")
            if not json and last.get("step") != step and last.get("step"):
                step = last["step"]
                output.text(f"{time.monotonic() - began:6.1f} s  {last['kind']} {step}")
            if last.get("state") in ENDED:
                break
            time.sleep(0.3)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nit goes on; follow it: zlh operations follow {operation_id[-8:]} · end it: zlh operations cancel {operation_id[-8:]}\n")
        raise
    if json:
        output.data(last)
    else:
        error = last.get("error") or {}
        why = f": {error.get('what', '')} {error.get('why', '')}" if error else ""
        output.text(f"{time.monotonic() - began:6.1f} s  {last['state']}{why}")
    if last.get("state") != "succeeded":
        raise SystemExit(1)
