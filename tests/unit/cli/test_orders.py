"""Following an order: what is waited for, what is printed, and what counts as done. The front door's answers are scripted."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flows.cli import orders
from flows.domain.operation import OperationState
from flows.state import attempts, operations, servers
from flows.state.database import Tx
from tests.unit.state.conftest import Make

from .conftest import Fleet, Said

OPERATION = "01980000-0000-7000-8000-000000000001"


@dataclass
class Script:
    """Answers by ``METHOD /path``, one after the other; the last is repeated."""

    answers: dict[str, list[tuple[int, dict[str, Any]]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def next(self, call: str) -> tuple[int, dict[str, Any]]:
        self.asked.append(call)
        answers = self.answers[call]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    known = Script()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            status, document = known.next(f"{self.command} {self.path}")
            body = json.dumps(document).encode()
            self.send_response(status)
            known.bodies.append(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}"))
            if "wait" in document:
                self.send_header("Retry-After", str(document["wait"]))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - names of the standard library

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("ZLH_API__PUBLIC_BIND", f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("ZLH_API__ADMIN_TOKEN", "zlh_x")
    monkeypatch.setattr(orders, "LOOK_S", 0.01)
    yield known
    server.shutdown()
    thread.join()
    server.server_close()


def operation(state: str, kind: str = "provision", *steps: tuple[str, str]) -> dict[str, Any]:
    told = [{"name": name, "state": how, "started_at": None, "finished_at": None} for name, how in steps]
    return {"id": OPERATION, "kind": kind, "state": state, "attempt": 1, "steps": told, "error": None}


def test_a_busy_api_is_waited_for(zlh: Callable[..., Said], fleet: Fleet, script: Script) -> None:
    slow = (429, {"type": "urn:zlh:problem:rate_limited", "title": "Too many requests", "wait": 1})
    script.answers = {
        f"POST /api/servers/{fleet.ids['moss']}/restart": [(202, {"operation": operation("queued", "restart")})],
        f"GET /api/operations/{OPERATION}": [slow, slow, (200, operation("succeeded", "restart"))],
    }
    said = zlh("restart", "moss")
    assert said.status == 0, said.err
    assert said.err.count("Too many requests · try again in 1 s · still trying") == 1
    assert "restart succeeded" in said.out


def test_a_start_of_what_runs_does_not_tell_its_last_operation_again(zlh: Callable[..., Said], fleet: Fleet, script: Script) -> None:
    """The front door answers with the operation that left the server as it is wanted, be it its creation."""
    script.answers = {
        f"POST /api/servers/{fleet.ids['moss']}/start": [(202, {"operation": operation("succeeded", "provision"), "deduplicated": True})]
    }
    for words in (("start", "moss"), ("start", "moss", "--no-wait")):
        said = zlh(*words)
        assert (said.status, said.out) == (0, "nothing to do: it already is so\n")


def test_a_repeated_order_follows_the_operation_that_is_under_way(zlh: Callable[..., Said], fleet: Fleet, script: Script) -> None:
    script.answers = {
        f"POST /api/servers/{fleet.ids['moss']}/start": [(202, {"operation": operation("running", "start"), "deduplicated": True})],
        f"GET /api/operations/{OPERATION}": [(200, operation("succeeded", "start"))],
    }
    assert "start succeeded" in zlh("start", "moss").out


def test_a_second_passes_between_two_looks() -> None:
    assert orders.LOOK_S == 1.0


def test_tasks_stand_under_their_step(zlh: Callable[..., Said], fleet: Fleet, script: Script, write: Callable[..., Any], monkeypatch: Any) -> None:
    async def submit(tx: Tx) -> None:
        await attempts.submitted(tx, fleet.ids["operation"], 1, "run-1")

    write(submit)
    monkeypatch.setenv("ZLH_ENGINE__URL", f"http://{os.environ['ZLH_API__PUBLIC_BIND']}/engine")
    log = [{"id": str(n), "timestamp": f"2026-01-01T00:00:0{n}Z", "message": said} for n, said in enumerate(("TASK a", "waiting", "TASK b"))]
    script.answers = {
        f"GET /api/operations/{fleet.ids['operation']}": [
            (200, operation("running", "provision", ("trust", "running"))),
            (200, operation("running", "provision", ("trust", "running"))),
            (200, operation("succeeded", "provision", ("trust", "done"))),
        ],
        "POST /engine/logs/filter": [(200, log[:1]), (200, log), (500, {})],
    }
    said = zlh("operations", "follow", fleet.ids["operation"])
    assert said.status == 0, said.err
    assert [line[10:].strip() for line in said.out.splitlines()] == [
        "provision running", "trust running", "TASK a", "TASK b", "trust done", "provision succeeded",
    ]  # fmt: skip
    assert said.err == ""


def test_deleting_during_creation_is_done_when_the_server_is_gone(zlh: Callable[..., Said], fleet: Fleet, script: Script) -> None:
    script.answers = {
        f"DELETE /api/servers/{fleet.ids['moss']}": [(202, {"operation": operation("running")})],
        f"GET /api/operations/{OPERATION}": [(200, operation("compensating")), (200, operation("cancelled"))],
        f"GET /api/servers/{fleet.ids['moss']}": [(200, {"state": "deleted"})],
    }
    said = zlh("delete", "moss", "--yes")
    assert (said.status, said.err) == (0, "")
    assert said.out.endswith("deleted moss\n")


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_a_server_that_is_still_there_was_not_deleted(zlh: Callable[..., Said], fleet: Fleet, script: Script, end: str) -> None:
    script.answers = {
        f"DELETE /api/servers/{fleet.ids['moss']}": [(202, {"operation": operation("running")})],
        f"GET /api/operations/{OPERATION}": [(200, operation(end))],
        f"GET /api/servers/{fleet.ids['moss']}": [(200, {"state": "active"})],
    }
    said = zlh("delete", "moss", "--yes")
    assert said.status == 1
    assert "deleted moss" not in said.out
    assert said.err == "zlh: delete moss · it is active · order it again: zlh delete moss\n"


def test_deleting_what_failed_cleanly_says_deleted(zlh: Callable[..., Said], api: str, fleet: Fleet, write: Callable[..., Any]) -> None:
    async def fail(tx: Tx) -> None:
        made = await Make().server(tx, customer_id=fleet.ids["customer"], name="broken", vmid=10_900, address="10.20.9.9")
        order = await Make().operation(tx, made)
        await operations.set_state(tx, order.id, OperationState.FAILED)
        await servers.mark_failed(tx, made.id, "test")

    write(fail)
    said = zlh("delete", "broken", "--yes")
    assert (said.status, said.out) == (0, "deleted broken\n")


def test_a_refused_order_names_the_option_and_what_to_do(zlh: Callable[..., Said], api: str) -> None:
    zlh("customers", "add", "alice")
    said = zlh("create", "fern", "--customer", "alice", "--memory", "1", "--cores", "0", "--no-wait")
    assert said.status == 2
    assert said.err.startswith("zlh: --memory: 1 is not valid · ")
    assert "; --cores " in said.err
    assert said.err.endswith(" · correct it and order again\n")


def test_a_developer_container_is_ordered_with_runtimes(zlh: Callable[..., Said], fleet: Fleet, script: Script) -> None:
    zlh("customers", "add", "alice")
    script.answers["POST /api/servers/create"] = [(202, {"operation": operation("queued")})]
    order = ("create", "bench", "--customer", "alice", "--type", "dev", "--no-wait")
    assert zlh(*order, "--runtime", "node=22.3.0", "--runtime", "python=3.13.1").status == 0
    assert script.bodies[-1]["runtimes"] == [{"name": "node", "version": "22.3.0"}, {"name": "python", "version": "3.13.1"}]
    assert zlh(*order).status == 0
    assert "runtimes" not in script.bodies[-1]


def test_a_runtime_that_is_refused_is_named_as_it_was_given(zlh: Callable[..., Said], fleet: Fleet, script: Script) -> None:
    zlh("customers", "add", "alice")
    errors = [{"field": "runtimes.1.version", "detail": "is not a promoted version"}, {"field": "runtimes.0.name", "detail": "is not in the catalog"}]
    script.answers["POST /api/servers/create"] = [(422, {"errors": errors})]
    said = zlh("create", "bench", "--customer", "alice", "--type", "dev", "--no-wait", "--runtime", "cobol=1", "--runtime", "python=0.1")
    assert said.status == 2
    assert said.err.startswith("zlh: --runtime: '0.1' is not valid · is not a promoted version; --runtime is not in the catalog · ")


@pytest.mark.parametrize("given", ["node", "=1", "node="])
def test_a_runtime_without_its_version_is_not_sent(zlh: Callable[..., Said], fleet: Fleet, script: Script, given: str) -> None:
    zlh("customers", "add", "alice")
    said = zlh("create", "bench", "--customer", "alice", "--type", "dev", "--no-wait", "--runtime", given)
    assert said.status == 2 and said.err.startswith("zlh: --runtime: ") and "NAME=VERSION" in said.err
    assert script.asked == []


def test_a_used_up_quota_says_what_to_do(zlh: Callable[..., Said], api: str, write: Callable[..., Any]) -> None:
    async def host(tx: Tx) -> None:
        await Make().node(tx)

    write(host)
    zlh("customers", "add", "alice")
    said = zlh("create", "fern", "--customer", "alice", "--memory", "1000000", "--no-wait")
    assert said.status == 1
    assert "quota" in said.err
    assert said.err.rstrip().endswith("ask for less, delete one of the customer's servers, or add a customer with a larger plan")
