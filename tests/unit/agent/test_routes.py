"""The HTTP face over a real supervisor: the fields and statuses that the control plane reads."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from zlh_agent import durable
from zlh_agent.config import Config
from zlh_agent.fence import Fence
from zlh_agent.jobs import Jobs
from zlh_agent.provisioned import Provisioned
from zlh_agent.routes import build

TOKEN, PREVIOUS = "t" * 43, "p" * 43
LEASE = {"X-ZLH-Lease-Token": "5"}


class Known(Provisioned):
    """What is missing is the test's to say."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.lacks: list[str] = []
        self.asked = 0

    async def missing(self) -> list[str]:
        self.asked += 1
        return self.lacks


@dataclass
class Face:
    http: httpx.AsyncClient
    house: Any
    agent: Any
    provisioned: Known
    config: Config


@asynccontextmanager
async def opened(house: Any, kind: str = "game") -> AsyncIterator[Face]:
    config = Config("srv-1", kind, "127.0.0.1", TOKEN, previous_token=PREVIOUS, state_dir=house.state, game_file=Path("/nowhere"))  # type: ignore[arg-type]
    agent = await house.agent() if kind == "game" else None
    provisioned = Known(config)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield

    lease, epoch = Fence("lease token", house.state / "lease"), Fence("epoch", house.state / "epoch")
    jobs = agent._jobs if agent else Jobs(house.state / "jobs.json")
    app = build(config, lease, epoch, jobs, provisioned, agent, lifespan)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://agent", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10
    ) as http:
        yield Face(http, house, agent, provisioned, config)


@pytest.fixture
async def face(house: Any) -> AsyncIterator[Face]:
    async with opened(house) as face:
        yield face


@pytest.fixture
async def dev(house: Any) -> AsyncIterator[Face]:
    async with opened(house, "dev") as face:
        yield face


@pytest.fixture
def until(waits: Any) -> Any:
    return waits[0]


def is_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    body: dict[str, Any] = response.json()
    assert body["status"] == status and body["type"] == "about:blank" and body["title"] and body["detail"]
    return body


async def test_health(face: Face) -> None:
    response = await face.http.get("/health")
    assert response.status_code == 200
    assert response.json().keys() == {"version", "started_at", "server_id"} and response.json()["server_id"] == "srv-1"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ü"])
@pytest.mark.parametrize("path", ["/health", "/status", "/nothing"])
async def test_without_the_token_nothing_is_told(face: Face, header: str, path: str) -> None:
    response = await face.http.get(path, headers={"Authorization": header.encode()})  # type: ignore[dict-item] # bytes go as they are
    is_problem(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"


async def test_the_previous_token_is_admitted(face: Face) -> None:
    assert (await face.http.get("/health", headers={"Authorization": f"Bearer {PREVIOUS}"})).status_code == 200


async def test_the_life_of_a_game(face: Face, until: Any) -> None:
    before = (await face.http.get("/status")).json()
    assert before.keys() == {
        *("server_id", "version", "state", "ready", "reason", "operation", "job", "maintenance", "uptime_s", "restarts", "last_crash"),
        *("players", "memory", "disk", "provisioning_complete", "missing"),
    }
    assert (before["state"], before["ready"], before["operation"], before["last_crash"], before["players"]) == ("stopped", False, None, None, None)
    assert before["memory"].keys() == before["disk"].keys() == {"used", "total"}
    body = is_problem(await face.http.get("/ready"), 503)
    assert (body["ready"], body["reason"]) == (False, "the game is stopped")

    started = await face.http.post("/game/start", headers=LEASE)
    job = started.json()["job"]
    assert started.status_code == 202 and started.headers["location"] == f"/jobs/{job['id']}"
    assert (await face.http.get("/status")).json()["operation"] == "start"
    refused = await face.http.post("/game/stop", headers=LEASE)
    assert is_problem(refused, 409)["operation"] == "start" and refused.headers["retry-after"] == "1"
    assert (await face.http.post("/game/start", headers=LEASE)).json()["job"]["id"] == job["id"]

    await until(lambda: face.agent.live is None)
    assert (await face.http.get("/ready")).json() == {"ready": True}
    after = (await face.http.get("/status")).json()
    assert (after["state"], after["ready"], after["players"], after["provisioning_complete"]) == ("running", True, 3, True)
    shown = (await face.http.get(f"/jobs/{job['id']}")).json()
    assert (shown["state"], shown["phase"], shown["kind"], shown["by"]) == ("succeeded", "ready", "start", "api")
    assert [j["id"] for j in (await face.http.get("/jobs?kind=start&state=succeeded")).json()["jobs"]] == [job["id"]]
    assert (await face.http.get("/jobs?kind=stop")).json() == {"jobs": []}


async def test_an_older_lease_token_is_refused_and_has_no_effect(face: Face) -> None:
    await face.http.post("/game/stop", headers=LEASE)
    body = is_problem(await face.http.post("/game/start", headers={"X-ZLH-Lease-Token": "4"}), 412)
    assert body["highest"] == 5 and face.house.unit.starts == 0


async def test_an_older_epoch_is_refused_and_nothing_is_remembered_of_it(face: Face) -> None:
    await face.http.post("/game/stop", headers={**LEASE, "X-ZLH-Epoch": "9"})
    body = is_problem(await face.http.post("/game/start", headers={"X-ZLH-Lease-Token": "6", "X-ZLH-Epoch": "8"}), 412)
    assert body["highest"] == 9 and (face.house.state / "lease").read_text() == "5\n"


@pytest.mark.parametrize(("header", "status"), [(None, 428), ("", 422), ("-1", 422), ("5.0", 422), ("five", 422), (str(2**63), 422), ("9" * 30, 422)])
async def test_a_lease_token_must_be_one(face: Face, header: str | None, status: int) -> None:
    is_problem(await face.http.post("/game/start", headers={} if header is None else {"X-ZLH-Lease-Token": header}), status)
    assert face.house.unit.starts == 0 and not (face.house.state / "lease").exists()


async def test_two_lease_tokens_are_none(face: Face) -> None:
    is_problem(await face.http.post("/game/start", headers=[("X-ZLH-Lease-Token", "1"), ("X-ZLH-Lease-Token", "9")]), 422)


async def test_what_is_not_provisioned_starts_nothing_and_can_be_stopped(face: Face) -> None:
    face.provisioned.lacks = ["jar: /srv/game/server.jar"]
    response = await face.http.post("/game/start", headers=LEASE)
    assert is_problem(response, 503)["missing"] == ["jar: /srv/game/server.jar"] and response.headers["retry-after"] == "5"
    status = (await face.http.get("/status")).json()
    assert (status["provisioning_complete"], status["missing"], status["ready"]) == (False, ["jar: /srv/game/server.jar"], False)
    assert (await face.http.post("/game/stop", headers=LEASE)).status_code == 202


async def test_a_stop_waits_for_nobody_to_look_what_is_missing(face: Face) -> None:
    assert (await face.http.post("/game/stop", headers=LEASE)).status_code == 202
    assert face.provisioned.asked == 0


async def test_without_a_game_it_is_not_prepared(face: Face) -> None:
    face.house.game, face.provisioned.lacks = None, ["game.toml"]
    assert is_problem(await face.http.post("/game/start", headers=LEASE), 409)["detail"].startswith("not prepared")
    assert (await face.http.post("/game/stop", headers=LEASE)).status_code == 202


@pytest.mark.parametrize("name", ["lease", "game.json", "jobs.json"])
async def test_a_full_disk_refuses_the_order_whichever_file_it_hits(face: Face, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write = durable.write

    def full(path: Path, text: str) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(durable, "write", full)
    response = await face.http.post("/game/start", headers=LEASE)
    assert "the disk is full" in is_problem(response, 503)["detail"] and response.headers["retry-after"] == "60"
    assert (face.house.unit.starts, face.agent.state, face.agent.live) == (0, "stopped", None)


async def test_a_fence_that_cannot_be_read_refuses(face: Face) -> None:
    (face.house.state / "lease").write_text("nonsense")
    assert "unfence" in is_problem(await face.http.post("/game/start", headers=LEASE), 503)["detail"]


async def test_bodies_have_a_limit(face: Face) -> None:
    is_problem(await face.http.post("/game/start", headers=LEASE, content=b"x" * 65_537), 413)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b"x" * 1024

    is_problem(await face.http.post("/game/start", headers=LEASE, content=endless()), 413)
    assert face.house.unit.starts == 0


async def test_other_paths_and_methods_are_problems(face: Face) -> None:
    is_problem(await face.http.get("/nothing"), 404)
    is_problem(await face.http.get("/jobs/job-1"), 404)
    assert "POST" in (await face.http.get("/game/start")).headers["allow"]
    is_problem(await face.http.get("/game/start"), 405)


async def test_a_developer_container_runs_as_soon_as_it_is_prepared(dev: Face) -> None:
    assert (await dev.http.get("/status")).json()["state"] == "running"
    assert (await dev.http.get("/ready")).status_code == 200
    dev.provisioned.lacks = ["sshd"]
    status = (await dev.http.get("/status")).json()
    assert (status["state"], status["ready"], status["missing"]) == ("stopped", False, ["sshd"])
    is_problem(await dev.http.get("/ready"), 503)


async def test_a_developer_container_has_no_game_and_no_code_server_yet(dev: Face) -> None:
    is_problem(await dev.http.post("/game/start", headers=LEASE), 409)
    is_problem(await dev.http.get("/dev/codeserver"), 409)
    is_problem(await dev.http.post("/dev/codeserver/start", headers=LEASE), 409)
    is_problem(await dev.http.post("/dev/codeserver/start", headers={"X-ZLH-Lease-Token": "4"}), 412)
