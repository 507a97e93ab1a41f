"""A real Prefect server and worker: set-up, deployments, submission, a scheduled run, cancellation, healing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import SecretStr

from flows.clients.engine import PrefectEngine
from flows.clients.engine_processes import server_argv, server_env, worker_argv, worker_env
from flows.clients.engine_setup import EngineSetup, Healing
from flows.domain.operation import Queue
from flows.errors import BadInput, Conflict, NotFound, Unauthorized
from flows.settings import EngineSettings

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

HEALING = Healing(heartbeat_s=90, pending_s=120)
IMPATIENT = Healing(heartbeat_s=90, pending_s=10)
"""The least that the engine allows, and only where no run is meant to start: a busy machine needs longer to start one."""
FLOWS = """
import asyncio
import os
from pathlib import Path
from prefect import flow

MARKS = Path(os.environ["STUB_MARKS"])

def mark(name):
    (MARKS / name).write_text(str(os.getpid()))

@flow
async def reconcile():
    mark(f"sweep-{os.getpid()}")

@flow
async def provision(operation_id: str, attempt: int, generation: int):
    mark(f"{operation_id}-{attempt}-{os.getcwd().replace('/', '_')}")
    if operation_id.startswith("slow"):
        await asyncio.sleep(300)
"""


@dataclass(frozen=True)
class Station:
    """A running server and what belongs to it."""

    settings: EngineSettings
    home: Path
    marks: Path
    prefect_file: Path

    def engine(self) -> PrefectEngine:
        return PrefectEngine(self.settings)

    def api(self) -> httpx.Client:
        user, _, password = self.settings.auth.get_secret_value().partition(":")
        return httpx.Client(base_url=self.settings.url, auth=(user, password), trust_env=False, timeout=10)


def free_port() -> int:
    """Below the range from which the kernel gives ports to other tests while the server is still starting."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def until(what: str, condition: Callable[[], Awaitable[Any]], deadline_s: float = 30.0) -> Any:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if result := await condition():
            return result
        await asyncio.sleep(0.2)
    raise AssertionError(f"{what}: not within {deadline_s} s")


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    home = tmp_path_factory.mktemp("engine")
    (home / "marks").mkdir()
    (home / "code").mkdir()
    (home / "code" / "zlh_stub_flows.py").write_text(FLOWS)
    config = yaml.safe_load(Path("prefect.yaml").read_text())
    config["deployments"] = [d for d in config["deployments"] if d["name"] in ("reconcile", "provision")]
    for deployment in config["deployments"]:
        deployment["entrypoint"] = f"zlh_stub_flows.{deployment['name']}"
    (home / "prefect.yaml").write_text(yaml.safe_dump(config))
    settings = EngineSettings(url=f"http://127.0.0.1:{free_port()}/api", auth=SecretStr("zlh:a-password"), timeout_s=30.0)
    environ = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:1/not-this-one"}
    log = (home / "server.log").open("wb")
    server = subprocess.Popen(server_argv(), env=server_env(home, settings, environ), stdout=log, stderr=log, cwd=home)
    time.sleep(1)
    assert server.poll() is None, (home / "server.log").read_text()[-3000:]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(home / "code"))
            patch.setenv("STUB_MARKS", str(home / "marks"))
            yield Station(settings, home, home / "marks", home / "prefect.yaml")
    finally:
        stop(server)
        log.close()


async def set_up(station: Station, healing: Healing = HEALING) -> None:
    setup = EngineSetup(station.settings, station.home)
    try:
        await setup.run(station.prefect_file, interval_s=15, healing=healing, wait_s=120)
    finally:
        await setup.close()


@pytest.fixture(scope="module")
def deployed(station: Station) -> Station:
    asyncio.run(set_up(station))
    return station


@pytest.fixture(scope="module")
def worker(deployed: Station) -> Iterator[subprocess.Popen[bytes]]:
    log = (deployed.home / "worker.log").open("wb")
    # A heartbeat every second: one falls into every gap.
    env = worker_env(deployed.home, deployed.settings) | {"PREFECT_WORKER_HEARTBEAT_SECONDS": "1"}
    process = subprocess.Popen(worker_argv(deployed.settings, name="w1"), env=env, stdout=log, stderr=log, cwd=deployed.home)
    yield process
    stop(process)
    log.close()


@pytest.fixture
async def engine(deployed: Station) -> Any:
    client = deployed.engine()
    yield client
    await client.close()


async def test_the_server_refuses_a_wrong_credential(station: Station, deployed: Station) -> None:
    wrong = PrefectEngine(station.settings.model_copy(update={"auth": SecretStr("zlh:wrong")}))
    with pytest.raises(Unauthorized, match="ZLH_ENGINE__AUTH"):
        await wrong.version()
    await wrong.close()


async def test_set_up_twice_keeps_every_id(deployed: Station) -> None:
    def ids() -> dict[str, Any]:
        with deployed.api() as api:
            pool = api.get("/work_pools/zlh").json()
            queues = api.post("/work_pools/zlh/queues/filter", json={}).json()
            automations = api.post("/automations/filter", json={}).json()
            deployments = api.post("/deployments/filter", json={}).json()
        return {
            "pool": pool["id"],
            "queues": {q["name"]: (q["id"], q["concurrency_limit"]) for q in queues},
            "automations": {a["name"]: a["id"] for a in automations},
            "deployments": {d["name"]: d["id"] for d in deployments},
            "intervals": [s["schedule"].get("interval") for d in deployments for s in d["schedules"]],
        }

    before = ids()
    await set_up(deployed)
    assert ids() == before
    assert set(before["queues"]) == {"default", *Queue}
    assert before["queues"]["provisioning"][1] == 1
    assert before["queues"]["reconcile"][1] is None
    assert len(before["automations"]) == 2
    assert before["intervals"] == [15.0]


async def test_a_missing_deployment_is_named(engine: PrefectEngine) -> None:
    with pytest.raises(NotFound, match="deployment digest/digest"):
        await engine.submit("digest", "1:none:1", {}, "repairs")


async def test_the_parameter_schema_is_enforced(engine: PrefectEngine) -> None:
    with pytest.raises(BadInput):
        await engine.submit("provision", "1:bad:1", {"operation_id": "x", "attempt": "not a number", "generation": 1}, "provisioning")
    assert await engine.runs(["1:bad:1"]) == {}


async def test_a_run_that_never_starts_is_crashed_and_frees_its_slot(deployed: Station, engine: PrefectEngine) -> None:
    """As if the worker was killed between Pending and Running."""
    await set_up(deployed, IMPATIENT)
    run_id = await engine.submit("provision", "1:pending:1", {"operation_id": "pending", "attempt": 1, "generation": 1}, "provisioning")
    with deployed.api() as api:
        api.post(f"/flow_runs/{run_id}/set_state", json={"state": {"type": "PENDING"}}).raise_for_status()
    assert [run.id for run in await engine.active()] == [run_id]

    async def crashed() -> bool:
        return (await engine.runs(["1:pending:1"]))["1:pending:1"].state == "crashed"

    await until("the automation", crashed, 120)
    assert await engine.active() == []
    await set_up(deployed)


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_a_run_whose_worker_was_killed_with_it_is_crashed(deployed: Station, engine: PrefectEngine) -> None:
    """Stands before the tests that start the other worker, which would take the run."""
    argv = worker_argv(deployed.settings, name="w2", queues=(Queue.PROVISIONING,))
    doomed = await asyncio.create_subprocess_exec(*argv, env=worker_env(deployed.home, deployed.settings), cwd=deployed.home, start_new_session=True)
    await engine.submit("provision", "1:slow-dead:1", {"operation_id": "slow-dead", "attempt": 1, "generation": 1}, "provisioning")

    async def running() -> list[Path]:
        return list(deployed.marks.glob("slow-dead-*"))

    await until("the run", running, 120)
    os.killpg(doomed.pid, signal.SIGKILL)
    await doomed.wait()

    async def crashed() -> bool:
        return (await engine.runs(["1:slow-dead:1"]))["1:slow-dead:1"].state == "crashed"

    await until("the automation", crashed, 200)


async def test_an_unknown_parameter_is_refused_by_name(deployed: Station, engine: PrefectEngine) -> None:
    with pytest.raises(BadInput, match="command"):
        await engine.submit("provision", "1:bad:2", {"operation_id": "bad", "attempt": 1, "generation": 1, "command": "rm"}, "provisioning")
    assert await engine.runs(["1:bad:2"]) == {}


async def test_twenty_submissions_of_one_key_are_one_run(deployed: Station, engine: PrefectEngine, worker: object) -> None:
    """From five processes' worth of clients: SQLite refuses many of them, which must show nowhere."""
    parameters = {"operation_id": "fast", "attempt": 1, "generation": 1}
    clients = [deployed.engine() for _ in range(5)]
    ids = await asyncio.gather(*(clients[n % 5].submit("provision", "1:fast:1", parameters, "provisioning") for n in range(20)))
    for client in clients:
        await client.close()
    assert len(set(ids)) == 1

    async def finished() -> bool:
        return (await engine.runs(["1:fast:1"]))["1:fast:1"].finished

    await until("the run", finished, 120)
    assert (await engine.runs(["1:fast:1"]))["1:fast:1"].state == "completed"
    marks = [mark.name for mark in deployed.marks.glob("fast-*")]
    assert marks == [f"fast-1-{str(deployed.home).replace('/', '_')}"], "it ran once, in the home directory"
    assert await engine.submit("provision", "1:fast:1", parameters, "provisioning") == ids[0], "a key never starts a second run"


async def test_a_scheduled_run_executes(deployed: Station, worker: object) -> None:
    async def two() -> bool:
        return len(list(deployed.marks.glob("sweep-*"))) >= 2

    await until("two scheduled sweeps", two, 120)


async def test_cancelling_ends_the_process(deployed: Station, engine: PrefectEngine, worker: object) -> None:
    run_id = await engine.submit("provision", "1:slow:1", {"operation_id": "slow", "attempt": 1, "generation": 1}, "provisioning")

    async def running() -> list[Path]:
        return list(deployed.marks.glob("slow-1-*"))

    (mark,) = await until("the run", running, 120)
    pid = int(mark.read_text())
    await engine.cancel(run_id)

    async def cancelled() -> bool:
        return (await engine.runs(["1:slow:1"]))["1:slow:1"].state == "cancelled"

    await until("the cancellation", cancelled, 120)
    assert not os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240 - /proc does not block
    await engine.cancel(run_id)  # a run that is over is left alone


async def test_a_paused_pool_hands_nothing_out(deployed: Station, engine: PrefectEngine, worker: object) -> None:
    async def online() -> bool:
        return [w.name for w in await engine.workers() if w.online] == ["w1"]

    await until("the worker's heartbeat", online, 60)
    await engine.pause(True)
    await engine.submit("provision", "1:paused:1", {"operation_id": "paused", "attempt": 1, "generation": 1}, "provisioning")
    await asyncio.sleep(3)  # the worker asks every second
    assert not list(deployed.marks.glob("paused-*"))
    await engine.pause(False)

    async def ran() -> list[Path]:
        return list(deployed.marks.glob("paused-*"))

    await until("the run after the pause", ran, 120)


async def test_a_database_made_anew_under_a_running_worker(deployed: Station, engine: PrefectEngine, worker: subprocess.Popen[bytes]) -> None:
    """What the engine knew is gone, even a key that was used before; the worker, which nobody restarted, takes the next run."""
    await engine.submit("provision", "1:renewed:1", {"operation_id": "renewed", "attempt": 1, "generation": 1}, "provisioning")

    async def ran() -> bool:
        return len(list(deployed.marks.glob("renewed-*"))) > 0

    await until("the run before", ran, 60)
    next(deployed.marks.glob("renewed-*")).unlink()
    setup = EngineSetup(deployed.settings, deployed.home)
    elsewhere = EngineSetup(deployed.settings, deployed.home / "code")
    try:
        with pytest.raises(NotFound, match="ZLH_ENGINE__HOME"):
            await elsewhere.renew(deployed.prefect_file)
        await setup.renew(deployed.prefect_file, interval_s=15)
    finally:
        await setup.close()
        await elsewhere.close()
    assert await engine.runs(["1:renewed:1"]) == {}
    await engine.submit("provision", "1:renewed:1", {"operation_id": "renewed", "attempt": 1, "generation": 1}, "provisioning")
    await until("the run after", ran, 180)
    assert worker.poll() is None


@pytest.mark.soak
async def test_another_database_than_the_servers_is_told(deployed: Station) -> None:
    """It is made anew as ordered, and then nothing is set up: this server keeps what it knows."""
    (deployed.home / "code" / "prefect.db").touch()
    elsewhere = EngineSetup(deployed.settings, deployed.home / "code")
    try:
        with pytest.raises(Conflict, match="is not its database"):
            await elsewhere.renew(deployed.prefect_file)
    finally:
        await elsewhere.close()


def test_the_projects_own_deployments_name_flows_that_exist() -> None:
    """Every entrypoint of prefect.yaml is an importable flow whose name is its deployment's."""
    code = (
        "import importlib, sys, yaml\n"
        "for d in yaml.safe_load(open('prefect.yaml'))['deployments']:\n"
        "    module, _, name = d['entrypoint'].rpartition('.')\n"
        "    flow = getattr(importlib.import_module(module), name)\n"
        "    assert flow.name == d['name'], (flow.name, d['name'])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
