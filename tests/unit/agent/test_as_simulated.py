"""The real agent answers as the simulated one does: the same statuses, and every field that the simulated one has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.lab.agents.routes import build as build_simulated
from flows.lab.agents.workload import Workload
from flows.lab.config import AgentsConfig
from flows.lab.faults import Faults
from flows.lab.serving import Site
from flows.lab.world import LabAgent, LabContainer
from zlh_agent.config import Config
from zlh_agent.fence import Fence
from zlh_agent.provisioned import Provisioned
from zlh_agent.routes import build

TOKEN = "t" * 43


class Whole(Provisioned):
    lacks: tuple[str, ...] = ()

    async def missing(self) -> list[str]:
        return list(self.lacks)


class Pair:
    """Both agents of one server, asked the same."""

    def __init__(self, simulated: httpx.AsyncClient, real: httpx.AsyncClient, sim: LabAgent, whole: Whole) -> None:
        self.simulated, self.real, self.sim, self.whole = simulated, real, sim, whole

    async def ask(self, method: str, path: str, lease: str | None = None, token: str = TOKEN) -> tuple[httpx.Response, httpx.Response]:
        headers = {"Authorization": f"Bearer {token}", **({} if lease is None else {"X-ZLH-Lease-Token": lease})}
        return await self.simulated.request(method, path, headers=headers), await self.real.request(method, path, headers=headers)

    async def alike(self, method: str, path: str, lease: str | None = None, token: str = TOKEN) -> int:
        """The status that both answer; fields, kinds and the headers that the client reads are compared."""
        simulated, real = await self.ask(method, path, lease, token)
        assert real.status_code == simulated.status_code, f"{method} {path}: {simulated.text} {real.text}"
        assert real.headers["content-type"] == simulated.headers["content-type"].split(";")[0]
        for name in ("retry-after", "location", "www-authenticate"):
            assert (name in real.headers) == (name in simulated.headers), f"{method} {path}: header {name}"
        compare(simulated.json(), real.json(), f"{method} {path}")
        return real.status_code


def compare(simulated: Any, real: Any, where: str) -> None:
    if isinstance(simulated, dict):
        assert simulated.keys() <= real.keys(), f"{where}: {simulated.keys() - real.keys()} is missing"
        for key, value in simulated.items():
            compare(value, real[key], f"{where}.{key}")
    elif isinstance(simulated, list):
        for one, other in zip(simulated, real, strict=False):
            compare(one, other, f"{where}[]")
    elif simulated is not None and real is not None:
        assert isinstance(real, (int, float) if isinstance(simulated, int | float) else type(simulated)), f"{where}: {simulated!r} {real!r}"


@pytest.fixture
async def pair(house: Any) -> AsyncIterator[Pair]:
    sim = LabAgent("srv-1", "0.1.0", TOKEN, prepared=True)
    container = LabContainer(101, "pve1", config={"memory": 512})
    workload = Workload(sim, AgentsConfig(start_s=1.0, stop_s=0.05, crash_restart_s=0.05))
    site = Site(("127.0.0.1", 0), lambda: build_simulated(container, workload, Faults()))
    await site.open()
    config = Config("srv-1", "game", "127.0.0.1", TOKEN, state_dir=house.state, game_file=Path("/nowhere"))
    supervisor, whole = await house.agent(), Whole(config)
    app = build(config, Fence("lease token", house.state / "lease"), Fence("epoch", house.state / "epoch"), supervisor._jobs, whole, supervisor, None)  # type: ignore[arg-type]
    async with (
        httpx.AsyncClient(base_url=site.url) as simulated,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://agent") as real,
    ):
        yield Pair(simulated, real, sim, whole)
    await workload.close()
    await site.close()


async def test_the_life_of_a_game(pair: Pair, waits: Any) -> None:
    async def idle() -> None:
        while [r.json()["operation"] for r in await pair.ask("GET", "/status")] != [None, None]:
            pass

    for path in ("/health", "/status", "/jobs"):
        assert await pair.alike("GET", path) == 200
    assert await pair.alike("GET", "/ready") == 503
    for action, state in (("start", "running"), ("restart", "running"), ("stop", "stopped")):
        assert await pair.alike("POST", f"/game/{action}", "7") == 202
        await idle()
        assert await pair.alike("GET", "/status") == 200
        assert [r.json()["state"] for r in await pair.ask("GET", "/status")] == [state, state]
        assert await pair.alike("GET", "/ready") == (200 if state == "running" else 503)
    assert await pair.alike("GET", "/jobs?state=succeeded") == 200


async def test_what_is_refused(pair: Pair) -> None:
    assert await pair.alike("GET", "/health", token="x" * 43) == 401
    assert await pair.alike("POST", "/game/start") == 428
    assert await pair.alike("POST", "/game/start", "five") == 422
    assert await pair.alike("POST", "/game/stop", "7") == 202
    assert await pair.alike("POST", "/game/start", "6") == 412
    assert await pair.alike("POST", "/dev/codeserver/start", "7") == 409
    assert await pair.alike("GET", "/dev/codeserver") == 409
    assert await pair.alike("GET", "/jobs/job-0") == 404
    assert await pair.alike("GET", "/nothing") == 404
    assert await pair.alike("GET", "/game/start") == 405
    assert await pair.alike("POST", "/game/start", "7") == 202
    assert await pair.alike("POST", "/game/stop", "7") == 409


async def test_what_is_not_provisioned(pair: Pair) -> None:
    pair.sim.prepared, pair.whole.lacks = False, ("jar",)
    assert await pair.alike("GET", "/status") == 200
    assert await pair.alike("GET", "/ready") == 503
    assert await pair.alike("POST", "/game/start", "7") == 503
    assert await pair.alike("POST", "/game/stop", "7") == 202
