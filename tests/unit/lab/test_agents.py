"""The simulated agents, asked over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from flows.lab.agents import AgentsPart, start
from flows.lab.config import LabConfig
from flows.lab.faults import Faults, Mode
from flows.lab.part import Manipulable, Part, PartError, Restartable
from flows.lab.world import LabAgent, LabContainer, World

Eventually = Callable[..., Awaitable[None]]
#: Jobs that end at once, and jobs that a test sees under way however busy the machine is.
QUICK = {"start_s": 0.02, "stop_s": 0.02, "crash_restart_s": 0.02}
ENDLESS = {"start_s": 60, "stop_s": 60}


@pytest.fixture
def timings() -> dict[str, float]:
    return QUICK


@pytest.fixture
async def part(
    lab_config: Callable[..., LabConfig], timings: dict[str, float], world: World, faults: Faults, game_agent: LabAgent
) -> AsyncIterator[AgentsPart]:
    world.containers[10001].agent = game_agent
    part = await start(lab_config(agents=timings), world, faults)
    yield part
    await part.stop()


@pytest.fixture
async def http(part: AgentsPart) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.20.9.1:{part.port}", headers={"Authorization": "Bearer agent-token"}, timeout=5) as client:
        yield client


def lease(token: int) -> dict[str, str]:
    return {"X-ZLH-Lease-Token": str(token)}


async def state(http: httpx.AsyncClient) -> str:
    return str((await http.get("/status")).json()["state"])


async def test_it_is_a_part_that_restarts_and_can_be_manipulated(part: AgentsPart) -> None:
    assert isinstance(part, Part) and isinstance(part, Restartable) and isinstance(part, Manipulable)
    assert part.endpoints["port"] == str(part.port)


async def test_health_names_the_server(http: httpx.AsyncClient) -> None:
    answer = await http.get("/health")
    assert answer.status_code == 200
    assert answer.json()["server_id"] == "srv-1"
    assert answer.json()["version"] == "0.1.0"


@pytest.mark.parametrize("header", [None, "Bearer wrong", "agent-token", "Basic agent-token", "Bearer agent-token2"])
async def test_every_route_needs_the_servers_own_token(part: AgentsPart, header: str | None) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.20.9.1:{part.port}") as http:
        for method, path in [("GET", "/health"), ("GET", "/ready"), ("GET", "/status"), ("POST", "/game/start"), ("GET", "/nowhere")]:
            answer = await http.request(method, path, headers={"Authorization": header} if header else {})
            assert answer.status_code == 401
            assert answer.headers["content-type"].startswith("application/problem+json")
            assert answer.json()["status"] == 401


async def test_the_previous_token_still_works_during_a_rotation(http: httpx.AsyncClient, game_agent: LabAgent) -> None:
    game_agent.token, game_agent.previous_token = "next-token", "agent-token"
    assert (await http.get("/health")).status_code == 200
    game_agent.previous_token = None
    assert (await http.get("/health")).status_code == 401


@pytest.mark.parametrize("timings", [ENDLESS])
async def test_a_start_is_a_job_and_until_its_end_nothing_is_ready(http: httpx.AsyncClient) -> None:
    before = await http.get("/ready")
    assert before.status_code == 503 and "stopped" in before.json()["reason"]
    answer = await http.post("/game/start", headers=lease(5))
    assert answer.status_code == 202
    job = answer.json()["job"]
    assert job["kind"] == "start" and answer.headers["Location"] == f"/jobs/{job['id']}"
    status = (await http.get("/status")).json()
    assert status["state"] == "starting" and status["operation"] == "start" and status["ready"] is False
    assert (await http.get(f"/jobs/{job['id']}")).json()["state"] == "running"
    assert (await http.get("/jobs", params={"kind": "stop"})).json() == {"jobs": []}
    assert (await http.get("/jobs/nothing")).status_code == 404
    assert (await http.get("/ready")).status_code == 503


async def test_a_start_ends_at_ready(http: httpx.AsyncClient, eventually: Eventually) -> None:
    job = (await http.post("/game/start", headers=lease(5))).json()["job"]

    async def ready() -> bool:
        return (await http.get("/ready")).status_code == 200

    await eventually(ready)
    status = (await http.get("/status")).json()
    assert status["state"] == "running" and status["ready"] and status["operation"] is None
    assert (await http.get(f"/jobs/{job['id']}")).json()["state"] == "succeeded"


@pytest.mark.parametrize("timings", [ENDLESS])
async def test_the_same_order_twice_is_one_job_and_another_one_conflicts(http: httpx.AsyncClient, game_agent: LabAgent) -> None:
    first = (await http.post("/game/start", headers=lease(5))).json()["job"]["id"]
    assert (await http.post("/game/start", headers=lease(5))).json()["job"]["id"] == first
    refused = await http.post("/game/stop", headers=lease(5))
    assert refused.status_code == 409 and refused.json()["operation"] == "start" and refused.json()["job"] == first
    assert [call["effect"] for call in game_agent.calls] == [True, False, False]


async def test_a_satisfied_order_has_no_effect(http: httpx.AsyncClient, game_agent: LabAgent) -> None:
    answer = await http.post("/game/stop", headers=lease(5))
    assert answer.status_code == 202 and answer.json()["job"]["state"] == "succeeded"
    assert game_agent.calls[0]["effect"] is False


async def test_a_lower_lease_token_is_refused_without_effect_even_after_the_agent_restarted(
    http: httpx.AsyncClient, part: AgentsPart, game_agent: LabAgent
) -> None:
    assert (await http.post("/game/stop", headers=lease(9))).status_code == 202
    refused = await http.post("/game/start", headers=lease(8))
    assert refused.status_code == 412 and refused.json()["highest"] == 9
    await part.restart()
    assert (await http.post("/game/start", headers=lease(8))).status_code == 412
    assert await state(http) == "stopped"
    assert (await http.post("/game/start", headers=lease(9))).status_code == 202
    assert [(call["path"], call["lease_token"], call["status"]) for call in game_agent.calls] == [
        ("/game/stop", 9, 202), ("/game/start", 8, 412), ("/game/start", 8, 412), ("/game/start", 9, 202),
    ]  # fmt: skip


@pytest.mark.parametrize(("headers", "status"), [({}, 428), ({"X-ZLH-Lease-Token": "seven"}, 422), ({"X-ZLH-Lease-Token": "-1"}, 422)])
async def test_a_mutating_call_without_a_proper_lease_token_is_refused(
    http: httpx.AsyncClient, game_agent: LabAgent, headers: dict[str, str], status: int
) -> None:
    assert (await http.post("/game/start", headers=headers)).status_code == status
    assert game_agent.workload == "stopped" and game_agent.calls[0]["status"] == status


async def test_an_unprepared_workload_does_not_start_but_may_be_stopped(http: httpx.AsyncClient, game_agent: LabAgent) -> None:
    game_agent.prepared = False
    refused = await http.post("/game/start", headers=lease(1))
    assert refused.status_code == 503 and refused.json()["missing"] == ["workload"]
    assert (await http.post("/game/stop", headers=lease(1))).status_code == 202
    assert (await http.get("/status")).json()["provisioning_complete"] is False


async def test_killed_means_connection_refused_and_the_workload_lives_on(part: AgentsPart, http: httpx.AsyncClient, eventually: Eventually) -> None:
    await http.post("/game/start", headers=lease(1))
    await part.manipulate("kill", {"vmid": 10001})
    with pytest.raises(httpx.ConnectError):
        await http.get("/health")
    await eventually(lambda: part.inspect()["agents"]["10001"]["state"] == "running")
    await part.manipulate("revive", {"vmid": 10001})
    assert await state(http) == "running"


async def test_killing_cuts_connections_that_are_open(part: AgentsPart, http: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection("127.20.9.1", part.port)
    await part.manipulate("kill", {"vmid": 10001})
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_frozen_accepts_and_never_answers_until_it_is_thawed(part: AgentsPart, game_agent: LabAgent, eventually: Eventually) -> None:
    await part.manipulate("freeze", {"vmid": 10001})
    reader, writer = await asyncio.open_connection("127.20.9.1", part.port)
    writer.write(b"POST /game/start HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer agent-token\r\nX-ZLH-Lease-Token: 3\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.2)
    assert game_agent.calls == []
    await part.manipulate("revive", {"vmid": 10001})
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 202")  # a late effect, as after SIGCONT
    writer.close()


async def test_a_stopped_container_has_no_listener_and_its_workload_comes_back_with_it(
    part: AgentsPart, http: httpx.AsyncClient, world: World, game_agent: LabAgent, eventually: Eventually
) -> None:
    await http.post("/game/start", headers=lease(1))
    await eventually(lambda: game_agent.workload == "running")
    container = world.containers[10001]
    container.status = "stopped"
    await world.changed(10001)
    assert game_agent.workload == "stopped"
    with pytest.raises(httpx.ConnectError):
        await http.get("/health")
    container.status, container.started_at = "running", 2.0
    await world.changed(10001)
    await eventually(lambda: game_agent.workload == "running")
    assert (await http.get("/jobs")).json()["jobs"][-1]["by"] == "autostart"


async def test_what_was_stopped_by_order_stays_stopped_over_a_reboot(
    part: AgentsPart, http: httpx.AsyncClient, world: World, game_agent: LabAgent, eventually: Eventually
) -> None:
    await http.post("/game/start", headers=lease(1))
    await eventually(lambda: game_agent.workload == "running")
    await http.post("/game/stop", headers=lease(1))
    await eventually(lambda: game_agent.workload == "stopped")
    world.containers[10001].started_at = 2.0  # rebooted between two looks
    await world.changed(10001)
    assert await state(http) == "stopped" and (await http.get("/status")).json()["operation"] is None


async def test_a_reboot_between_two_looks_starts_the_workload_anew(
    part: AgentsPart, http: httpx.AsyncClient, world: World, game_agent: LabAgent, eventually: Eventually
) -> None:
    await http.post("/game/start", headers=lease(1))
    await eventually(lambda: game_agent.workload == "running")
    world.containers[10001].started_at = 2.0
    await world.changed(10001)
    assert [job["by"] for job in (await http.get("/jobs")).json()["jobs"]] == ["api", "autostart"]
    await eventually(lambda: game_agent.workload == "running")


@pytest.mark.parametrize("timings", [ENDLESS])
async def test_a_reboot_interrupts_the_job_under_way(part: AgentsPart, http: httpx.AsyncClient, world: World) -> None:
    await http.post("/game/start", headers=lease(1))
    world.containers[10001].status = "stopped"
    await world.changed(10001)
    world.containers[10001].status = "running"
    await world.changed(10001)
    jobs = (await http.get("/jobs")).json()["jobs"]
    assert jobs[0]["state"] == "interrupted" and jobs[0]["finished_at"] is not None


async def test_a_node_that_is_down_takes_its_containers_along(part: AgentsPart, http: httpx.AsyncClient, world: World) -> None:
    world.nodes["pve1"].online = False
    await world.changed(10001)
    with pytest.raises(httpx.ConnectError):
        await http.get("/health")


async def test_a_destroyed_container_leaves_nothing(part: AgentsPart, http: httpx.AsyncClient, world: World) -> None:
    del world.containers[10001]
    await world.changed(10001)
    with pytest.raises(httpx.ConnectError):
        await http.get("/health")
    assert part.inspect()["agents"] == {}


async def test_crashes_restart_the_workload_until_the_third(
    part: AgentsPart, http: httpx.AsyncClient, game_agent: LabAgent, eventually: Eventually
) -> None:
    await http.post("/game/start", headers=lease(1))
    for count in (1, 2):
        await eventually(lambda: game_agent.workload == "running")
        assert (await part.manipulate("crash", {"vmid": 10001}))["workload"] == "crashed"
        assert (await http.get("/status")).json()["last_crash"]["count"] == count
    await eventually(lambda: game_agent.workload == "running")
    assert game_agent.restarts == 2
    await part.manipulate("crash", {"vmid": 10001, "reason": "bad_mod"})
    status = (await http.get("/status")).json()
    assert status["state"] == "error" and status["last_crash"]["class"] == "bad_mod"
    await http.post("/game/start", headers=lease(1))
    await eventually(lambda: game_agent.workload == "running")


async def test_another_identity_and_another_token(part: AgentsPart, http: httpx.AsyncClient) -> None:
    await part.manipulate("impersonate", {"vmid": 10001, "server_id": "srv-2"})
    assert (await http.get("/health")).json()["server_id"] == "srv-2"
    assert (await http.get("/status")).json()["server_id"] == "srv-2"
    await part.manipulate("rotate", {"vmid": 10001, "token": "other"})
    assert (await http.get("/health")).status_code == 401


@pytest.mark.parametrize(("op", "arguments"), [("kill", {}), ("kill", {"vmid": "10001"}), ("kill", {"vmid": 7}), ("explode", {"vmid": 10001})])
async def test_bad_manipulations_are_refused(part: AgentsPart, op: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(PartError):
        await part.manipulate(op, arguments)


async def test_transport_faults_hit_one_agent_or_all(http: httpx.AsyncClient, faults: Faults, game_agent: LabAgent) -> None:
    faults.arm("agent:10001", Mode.LOSE_ANSWER, count=1, call="POST /game/*")
    with pytest.raises(httpx.RemoteProtocolError):
        await http.post("/game/start", headers=lease(1))
    assert game_agent.calls[0]["effect"] is True
    faults.arm("agents", Mode.ERROR, count=1, status=500)
    assert (await http.get("/status")).status_code == 500
    faults.arm("agent:10001", Mode.PARTIAL, count=1)
    assert "ready" not in (await http.get("/status")).json()
    faults.arm("agent:10002", Mode.ERROR)
    assert (await http.get("/status")).status_code == 200


async def test_a_developer_container_is_ready_when_prepared_and_knows_no_game(lab_config: Any, world: World, faults: Faults) -> None:
    agent = world.containers[10001].agent = LabAgent("srv-1", "0.1.0", "agent-token", kind="dev", prepared=True)
    part = await start(lab_config(agents=ENDLESS), world, faults)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.20.9.1:{part.port}", headers={"Authorization": "Bearer agent-token"}) as http:
            assert (await http.get("/ready")).status_code == 200
            assert await state(http) == "running"
            assert (await http.post("/game/start", headers=lease(1))).status_code == 409
            assert (await http.get("/dev/codeserver")).status_code == 409
            agent.code_server = True
            assert (await http.get("/ready")).status_code == 503
            answer = await http.post("/dev/codeserver/start", headers=lease(1))
            assert answer.status_code == 202 and answer.json()["job"]["by"] == "api"
            await asyncio.sleep(0)  # the job takes its first step
            assert (await http.get("/dev/codeserver")).json() == {"state": "starting"}
    finally:
        await part.stop()


async def test_two_containers_on_one_address_do_not_end_the_lab(part: AgentsPart, world: World) -> None:
    twin = LabContainer(10002, "pve1", status="running", config=dict(world.containers[10001].config), started_at=1.0)
    twin.agent = LabAgent("srv-2", "0.1.0", "t")
    world.containers[10002] = twin
    await world.changed(10002)
    shown = part.inspect()["agents"]["10002"]
    assert shown["listening"] is False and "cannot listen" in shown["error"]


async def test_tls_with_the_delivered_certificate_and_plain_without(part: AgentsPart, world: World, game_agent: LabAgent) -> None:
    game_agent.certificate, game_agent.key = self_signed("127.20.9.1")
    await world.changed(10001)
    trust = ssl.create_default_context(cadata=game_agent.certificate)
    async with httpx.AsyncClient(verify=trust, headers={"Authorization": "Bearer agent-token"}) as http:
        assert (await http.get(f"https://127.20.9.1:{part.port}/health")).json()["server_id"] == "srv-1"
        with pytest.raises(httpx.TransportError):
            await http.get(f"http://127.20.9.1:{part.port}/health")
    assert "agent-token" not in str(part.inspect()) and "PRIVATE" not in str(part.inspect())


def self_signed(address: str) -> tuple[str, str]:
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM).decode(), pem.decode()
