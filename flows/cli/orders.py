"""Commands that order work: ``create``, ``delete``, ``start``, ``stop``, ``restart``, and ``operations follow|cancel|retry``.

All go through the same API as customers, with the admin token of ``ZLH_API__ADMIN_TOKEN``.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import output, session
from flows.cli.commands import group_of
from flows.cli.listings import complete_customer, complete_operation, complete_server, one
from flows.cli.nouns import BY_NAME
from flows.cli.tasks import Tasks
from flows.errors import BadInput, RateLimited, Temporary

if TYPE_CHECKING:
    from flows.settings import Settings

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="follow the operation to its end")]
Server = Annotated[str, typer.Argument(metavar="SERVER", help="name or id", autocompletion=complete_server)]
OperationId = Annotated[str, typer.Argument(metavar="ID", help="id, its beginning or its end", autocompletion=complete_operation)]
ENDED = frozenset({"succeeded", "failed", "cancelled"})
#: Seconds between two looks, and how long an API that does not answer is waited for.
LOOK_S, PATIENCE_S = 1.0, 60.0
#: What the options of ``zlh create`` are called in the order.
NAMES = {
    "name": "NAME",
    "ctype": "--type",
    "flavor": "--flavor",
    "version": "--version",
    "memory_mb": "--memory",
    "cores": "--cores",
    "disk_gb": "--disk",
    "request_nonce": "--nonce",
    "customer_id": "--customer",
    "runtimes": "--runtime",
}


def add_to(app: typer.Typer) -> None:
    for command in (create, delete, start, stop, restart):
        app.command()(command)
    app.command("deploy-agent")(deploy_agent)
    app.command("restart-agent")(restart_agent)
    if any(g.name == "operations" for g in app.registered_groups):
        group = group_of(app, "operations")
        group.command()(follow)
        group.command()(cancel)
        group.command()(retry)


def create(
    name: str,
    customer: Annotated[str, typer.Option(help="name or id of the customer", autocompletion=complete_customer)],
    kind: Annotated[str, typer.Option("--type", help="game or dev")] = "game",
    flavor: Annotated[str | None, typer.Option(help="what runs in it; default: fabric, and dev for --type dev")] = None,
    version: Annotated[str | None, typer.Option(help="its version; default: 1.21.4, and 1 for --type dev")] = None,
    memory: Annotated[int, typer.Option(help="memory, MiB")] = 2048,
    cores: Annotated[int, typer.Option(help="cores")] = 2,
    disk: Annotated[int, typer.Option(help="disk, GiB")] = 10,
    runtime: Annotated[list[str] | None, typer.Option(help="NAME=VERSION from the catalog, once for each; for --type dev")] = None,
    nonce: Annotated[str | None, typer.Option(help="the same nonce never creates twice; default: a new one")] = None,
    wait: Wait = True,
    json: output.Json = False,
) -> None:
    """Order a server for a customer."""
    owner, _ = one(BY_NAME["customers"], customer)
    body: dict[str, Any] = {
        "ctype": kind,
        "name": name,
        "flavor": flavor or ("dev" if kind == "dev" else "fabric"),
        "version": version or ("1" if kind == "dev" else "1.21.4"),
        "memory_mb": memory,
        "cores": cores,
        "disk_gb": disk,
        "request_nonce": nonce or uuid.uuid4().hex,
        "customer_id": owner["id"],
    }
    if runtime:
        body["runtimes"] = [_runtime(given) for given in runtime]
    _order("POST", "/api/servers/create", wait, json, body)


def _runtime(given: str) -> dict[str, str]:
    name, _, version = given.partition("=")
    if not name or not version:
        raise BadInput("--runtime", given, why="is not NAME=VERSION", remedy="for example --runtime node=22.3.0")
    return {"name": name, "version": version}


def delete(server: Server, yes: output.Yes = False, wait: Wait = True, json: output.Json = False) -> None:
    """Delete a server for good."""
    found = _server(server, final=True)
    output.confirm(f"delete {found['name']} of {found['customer']} and everything in it?", yes)
    _order("DELETE", f"/api/servers/{found['id']}", wait, json, gone=found)


def start(server: Server, wait: Wait = True, json: output.Json = False) -> None:
    """Start a server."""
    _order("POST", f"/api/servers/{_server(server)['id']}/start", wait, json)


def stop(server: Server, wait: Wait = True, json: output.Json = False) -> None:
    """Stop a server until a person starts it: off the proxy first, then gracefully."""
    _order("POST", f"/api/servers/{_server(server, final=True)['id']}/stop", wait, json)


def restart(server: Server, wait: Wait = True, json: output.Json = False) -> None:
    """Restart a server: off the proxy, restarted, ready, back on it."""
    _order("POST", f"/api/servers/{_server(server, final=True)['id']}/restart", wait, json)


def deploy_agent(server: Server, wait: Wait = True, json: output.Json = False) -> None:
    """Deploy the pinned release of the agent, with the server's present token and certificate; its workload goes on."""
    _order("POST", f"/api/servers/{_server(server)['id']}/deploy-agent", wait, json)


def restart_agent(server: Server, wait: Wait = True, json: output.Json = False) -> None:
    """Restart the agent's service through its node; the workload goes on."""
    _order("POST", f"/api/servers/{_server(server)['id']}/restart-agent", wait, json)


def follow(operation: OperationId, json: output.Json = False) -> None:
    """Live steps of an operation, and its end. Ctrl-C leaves it running."""
    _follow(session.settings(), _operation(operation), json)


def cancel(operation: OperationId, wait: Wait = True, json: output.Json = False) -> None:
    """Stop a creation and undo what it did."""
    _order("POST", f"/api/operations/{_operation(operation, final=True)}/cancel", wait, json, wanted="cancelled")


def retry(operation: OperationId, wait: Wait = True, json: output.Json = False) -> None:
    """Try a failed operation once more."""
    _order("POST", f"/api/operations/{_operation(operation)}/retry", wait, json)


def _server(given: str, *, final: bool = False) -> dict[str, Any]:
    return one(BY_NAME["servers"], given, final=final)[0]


def _operation(given: str, *, final: bool = False) -> str:
    return str(one(BY_NAME["operations"], given, final=final)[0]["id"])


def _order(
    method: str,
    path: str,
    wait: bool,
    json: bool,
    body: Mapping[str, Any] | None = None,
    wanted: str = "succeeded",
    gone: Mapping[str, Any] | None = None,
) -> None:
    """``gone``: the server that is to be deleted; then its state decides, whichever operation brought it there."""
    from flows.clients import own_api

    settings = session.settings()
    answer = own_api.call(settings.api, method, path, body, named=NAMES)
    operation = answer.get("operation")
    if isinstance(operation, dict) and answer.get("deduplicated") and body is None and gone is None and operation["state"] == wanted and not json:
        operation = None  # it is over, and what it left is what is wanted: not to be told as if it were this order's
    if isinstance(operation, dict) and wait:
        _follow(settings, str(operation["id"]), json, wanted, gone)
    elif json:
        output.data(answer)
    elif isinstance(operation, dict):
        output.text(f"operation {operation['id']}: zlh operations follow {str(operation['id'])[-8:]}")
    elif gone is not None:
        output.text(f"deleted {gone['name']}")
    else:
        output.text("nothing to do: it already is so")


def _follow(settings: Settings, operation_id: str, json: bool, wanted: str = "succeeded", gone: Mapping[str, Any] | None = None) -> None:
    """Prints each step as it begins and ends; exit 1 unless it ended as wanted."""
    steps, tasks = _Steps(json), Tasks(settings, operation_id)
    try:
        while True:
            seen = _ask(settings, f"/api/operations/{operation_id}", steps)
            if not json:
                steps.show(seen, tasks.begun())
            if seen.get("state") in ENDED:
                break
            time.sleep(LOOK_S)
        server = _ask(settings, f"/api/servers/{gone['id']}", steps) if gone is not None else {}
    except KeyboardInterrupt:
        short = operation_id[-8:]
        sys.stderr.write(f"\nit goes on · follow it: zlh operations follow {short} · take a creation back: zlh operations cancel {short}\n")
        raise
    if json:
        output.data(seen)
    else:
        problem = seen.get("error") or {}
        why = " · ".join(str(problem[k]) for k in ("what", "why", "remedy") if problem.get(k))
        steps.line(f"{seen['kind']} {seen['state']}" + (f": {why}" if why else ""))
    if gone is None:
        good = seen.get("state") == wanted
    else:
        good = server.get("state") == "deleted"
        if good and not json:
            output.text(f"deleted {gone['name']}")
        elif not good:
            output.remark(f"zlh: delete {gone['name']} · it is {server.get('state')} · order it again: zlh delete {gone['name']}")
    if not good:
        raise SystemExit(1)


def _ask(settings: Settings, path: str, steps: _Steps) -> dict[str, Any]:
    """The answer, however long that takes where the API asks to wait, and for a while where there is none."""
    from flows.clients import own_api

    silent: float | None = None
    while True:
        try:
            return own_api.call(settings.api, "GET", path)
        except RateLimited as error:
            silent = None
            steps.remark(str(error))
            time.sleep(error.retry_after or LOOK_S)
        except Temporary as error:
            silent = silent or time.monotonic()
            if time.monotonic() - silent > PATIENCE_S:
                raise
            steps.remark(str(error))
            time.sleep(error.retry_after or LOOK_S)


class _Steps:
    """What was printed so far, so that a line is printed once."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._began = time.monotonic()
        self._shown: set[tuple[str, str]] = set()
        self._state = self._said = ""

    def show(self, seen: Mapping[str, Any], tasks: Sequence[str] = ()) -> None:
        """Tasks stand under the step that ran them: before the line that says it is done, after the one that says it began."""
        known = bool(self._shown)
        if known:
            self._tasks(tasks)
        self._steps(seen)
        if not known:
            self._tasks(tasks)

    def _tasks(self, tasks: Sequence[str]) -> None:
        for task in tasks:
            self.line(f"    {task}")

    def _steps(self, seen: Mapping[str, Any]) -> None:
        if seen["state"] != self._state and seen["state"] not in ENDED:
            self._state = seen["state"]
            self.line(f"{seen['kind']} {self._state}" + (f", attempt {seen['attempt']}" if seen["attempt"] > 1 else ""))
        for step in seen["steps"]:
            mark = (step["name"], step["state"])
            if step["state"] != "pending" and mark not in self._shown:
                if step["state"] == "done" or not any(name == step["name"] for name, _ in self._shown) or step["state"] != "running":
                    self.line(f"  {step['name']} {step['state']}{_took(step)}")
                self._shown.add(mark)

    def remark(self, said: str) -> None:
        if said != self._said and not self._quiet:
            self._said = said
            sys.stderr.write(f"zlh: {said} · still trying\n")

    def line(self, words: str) -> None:
        output.text(f"{time.monotonic() - self._began:6.1f} s  {words}")
        sys.stdout.flush()


def _took(step: Mapping[str, Any]) -> str:
    from datetime import datetime

    if not step.get("finished_at") or not step.get("started_at"):
        return ""
    took = datetime.fromisoformat(step["finished_at"]) - datetime.fromisoformat(step["started_at"])
    return f" in {output.duration(took.total_seconds() * 1000)}"
