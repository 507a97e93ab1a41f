"""The engine client against answers that a Prefect server gives (tests/e2e/test_engine.py asks a real one)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from flows.clients.engine import PrefectEngine
from flows.clients.engine_api import PAGE
from flows.errors import BadAnswer, BadInput, Busy, Conflict, NotFound, Unauthorized, Unproven, Unreachable
from flows.settings import EngineSettings

DEPLOYMENT = "/api/deployments/name/provision/provision"
CREATE = "/api/deployments/dep-1/create_flow_run"
Handler = Callable[[httpx.Request], httpx.Response]


class Peer:
    """Answers by path; a list is a sequence of answers, the last of which repeats. Keeps every request."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {DEPLOYMENT: (200, {"id": "dep-1"}), CREATE: (201, {"id": "run-1"})}
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[request.url.path]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(json.loads(request.content))
        status, body = answer
        return httpx.Response(status, json=body)

    def bodies(self, path: str) -> list[Any]:
        return [json.loads(r.content) for r in self.requests if r.url.path == path]


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
async def engine(peer: Peer) -> Any:
    settings = EngineSettings(url="http://127.0.0.1:4200/api/", auth=SecretStr("zlh:geheim"), timeout_s=0.5)
    client = PrefectEngine(settings, transport=httpx.MockTransport(peer))
    yield client
    await client.close()


async def test_the_tasks_of_a_run_are_read_from_its_log(engine: PrefectEngine, peer: Peer) -> None:
    rows = [{"id": str(n), "timestamp": f"2026-01-01T00:00:0{n}Z", "message": said} for n, said in enumerate(("step 1/2", "TASK a", "TASK b"))]
    peer.answers["/api/logs/filter"] = (200, rows)
    assert [line.text for line in await engine.tasks_said("run-1", "2026-01-01T00:00:00Z")] == ["TASK a", "TASK b"]
    (body,) = peer.bodies("/api/logs/filter")
    assert body["logs"] == {"flow_run_id": {"any_": ["run-1"]}, "timestamp": {"after_": "2026-01-01T00:00:00Z"}}
    assert body["sort"] == "TIMESTAMP_ASC"


async def submit(engine: PrefectEngine, queue: str = "provisioning") -> str:
    return await engine.submit("provision", "7:op-1:1", {"operation_id": "op-1", "attempt": 1, "generation": 7}, queue)


async def test_submits_with_key_queue_and_credential(engine: PrefectEngine, peer: Peer) -> None:
    assert await submit(engine) == "run-1"
    body = peer.bodies(CREATE)[0]
    assert body["idempotency_key"] == "7:op-1:1"
    assert body["work_queue_name"] == "provisioning"
    assert body["parameters"] == {"operation_id": "op-1", "attempt": 1, "generation": 7}
    assert "operation:op-1" in body["tags"]
    assert all(r.headers["Authorization"].startswith("Basic ") for r in peer.requests)


async def test_looks_a_deployment_up_once(engine: PrefectEngine, peer: Peer) -> None:
    await submit(engine)
    await submit(engine)
    assert [r.url.path for r in peer.requests] == [DEPLOYMENT, CREATE, CREATE]


async def test_finds_a_deployment_that_was_made_anew(engine: PrefectEngine, peer: Peer) -> None:
    await submit(engine)
    peer.answers[CREATE] = (404, {"detail": "Deployment not found"})
    peer.answers[DEPLOYMENT] = (200, {"id": "dep-2"})
    peer.answers["/api/deployments/dep-2/create_flow_run"] = (201, {"id": "run-2"})
    assert await submit(engine) == "run-2"


async def test_repeats_a_locked_database_with_the_same_key(engine: PrefectEngine, peer: Peer) -> None:
    locked = (503, {"exception_message": "Service Unavailable"})
    peer.answers[CREATE] = [locked, locked, (201, {"id": "run-1"})]
    assert await submit(engine) == "run-1"
    assert [b["idempotency_key"] for b in peer.bodies(CREATE)] == ["7:op-1:1"] * 3


async def test_gives_up_on_a_database_that_stays_locked(engine: PrefectEngine, peer: Peer) -> None:
    peer.answers[CREATE] = (503, {})
    with pytest.raises(Busy):
        await submit(engine)


async def test_an_unknown_queue_is_refused_before_the_server_creates_it(engine: PrefectEngine, peer: Peer) -> None:
    with pytest.raises(BadInput):
        await submit(engine, queue="provisionning")
    assert not peer.requests


@pytest.mark.parametrize(
    ("answer", "error", "names"),
    [
        ((401, {}), Unauthorized, "ZLH_ENGINE__AUTH"),
        ((404, {"detail": "Deployment not found"}), NotFound, "prefect --no-prompt deploy --all"),
        ((409, {"detail": "Error creating flow run: 'x' is not of type 'integer'"}), BadInput, "not of type 'integer'"),
        ((500, {}), Unreachable, "ZLH_ENGINE__URL"),
        (httpx.ConnectError("refused"), Unreachable, "ZLH_ENGINE__URL"),
        (httpx.ReadTimeout("late"), Unreachable, "ReadTimeout"),
        ((200, {"no": "id"}), BadAnswer, "id is missing"),
    ],
)
async def test_failures_say_what_to_do(engine: PrefectEngine, peer: Peer, answer: Any, error: type[Exception], names: str) -> None:
    peer.answers[CREATE] = answer
    with pytest.raises(error, match=names) as caught:
        await submit(engine)
    assert "geheim" not in str(caught.value)


async def test_reads_runs_to_the_last_page(engine: PrefectEngine, peer: Peer) -> None:
    rows = [{"id": f"r{n}", "idempotency_key": f"k{n % 60}", "state_type": "RUNNING"} for n in range(PAGE + 3)]
    peer.answers["/api/flow_runs/filter"] = lambda body: (200, rows[body["offset"] : body["offset"] + body["limit"]])
    runs = await engine.runs([f"k{n}" for n in range(60)])
    assert len(runs) == 60
    assert [b["offset"] for b in peer.bodies("/api/flow_runs/filter")] == [0, PAGE]


async def test_asks_for_many_keys_in_parts(engine: PrefectEngine, peer: Peer) -> None:
    def answer(body: Any) -> tuple[int, Any]:
        keys = body["flow_runs"]["idempotency_key"]["any_"]
        return 200, [{"id": f"id-{k}", "idempotency_key": k, "state_type": "COMPLETED"} for k in keys]

    peer.answers["/api/flow_runs/filter"] = answer
    runs = await engine.runs([f"k{n}" for n in range(250)])
    assert len(runs) == 250
    assert runs["k7"].finished
    assert runs["k7"].state == "completed"


async def test_no_keys_ask_nothing(engine: PrefectEngine, peer: Peer) -> None:
    assert await engine.runs([]) == {}
    assert not peer.requests


async def test_an_endless_list_is_not_believed(engine: PrefectEngine, peer: Peer) -> None:
    page = [{"id": f"r{n}", "idempotency_key": "k", "state_type": "RUNNING"} for n in range(PAGE)]
    peer.answers["/api/flow_runs/filter"] = (200, page)
    with pytest.raises(Unproven):
        await engine.runs(["k"])


async def test_of_two_runs_under_one_key_the_unfinished_counts(engine: PrefectEngine, peer: Peer) -> None:
    rows = [{"id": "a", "idempotency_key": "k", "state_type": "RUNNING"}, {"id": "b", "idempotency_key": "k", "state_type": "COMPLETED"}]
    peer.answers["/api/flow_runs/filter"] = (200, rows)
    assert (await engine.runs(["k"]))["k"].id == "a"


async def test_cancels(engine: PrefectEngine, peer: Peer) -> None:
    peer.answers["/api/flow_runs/run-1/set_state"] = (201, {"status": "ACCEPT"})
    await engine.cancel("run-1")
    assert peer.bodies("/api/flow_runs/run-1/set_state") == [{"state": {"type": "CANCELLING", "name": "Cancelling"}}]


@pytest.mark.parametrize(("state", "error"), [("COMPLETED", None), ("RUNNING", Conflict)])
async def test_a_refused_cancel_is_well_only_for_a_run_that_is_over(
    engine: PrefectEngine, peer: Peer, state: str, error: type[Exception] | None
) -> None:
    peer.answers["/api/flow_runs/run-1/set_state"] = (200, {"status": "REJECT"})
    peer.answers["/api/flow_runs/run-1"] = (200, {"id": "run-1", "state_type": state})
    if error is None:
        await engine.cancel("run-1")
    else:
        with pytest.raises(error):
            await engine.cancel("run-1")


async def test_lists_workers(engine: PrefectEngine, peer: Peer) -> None:
    peer.answers["/api/work_pools/zlh/workers/filter"] = (
        200,
        [
            {"id": "1", "name": "w1", "status": "ONLINE", "last_heartbeat_time": "2026-01-01T00:00:01Z"},
            {"id": "2", "name": "w2", "status": "OFFLINE", "last_heartbeat_time": None},
        ],
    )
    one, two = await engine.workers()
    assert (one.name, one.online, one.heartbeat_at) == ("w1", True, 1_767_225_601_000)
    assert (two.online, two.heartbeat_at) == (False, None)
