"""The agents' client: against the lab's agents over TLS, and against peers that lie, hang, drip and break off."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from flows.clients.agent_token import agent_token
from flows.clients.agents import AgentClient
from flows.clients.ca import CertificateAuthority
from flows.domain.agent import AgentStatus, WorkloadState
from flows.domain.known import Known, Unknown
from flows.domain.server import ContainerType, Desired, Edge, Server, ServerState
from flows.errors import (
    AmbiguousEffect,
    AutomationError,
    BadAnswer,
    BadInput,
    Busy,
    Conflict,
    Fenced,
    MisconfiguredSetting,
    NotFound,
    RateLimited,
    Unauthorized,
    Unreachable,
)
from flows.lab import agents as lab_agents
from flows.lab.config import LabConfig
from flows.lab.faults import Faults, Mode
from flows.lab.world import LabAgent, LabContainer, LabNode, World
from flows.settings import AgentSettings

MASTER = SecretStr("test-master-secret-of-forty-characters!!")
STATUS: dict[str, Any] = {"server_id": "srv-0", "version": "1.0.0", "state": "running", "ready": True, "operation": None, "players": 3}


def server(index: int, address: str | None = None, **changes: Any) -> Server:
    values: dict[str, Any] = {
        "id": f"srv-{index}", "customer_id": "c", "name": f"s{index}", "ctype": ContainerType.GAME, "flavor": "fabric", "version": "1.21",
        "memory_mb": 1024, "cores": 1, "disk_gb": 4, "node": "pve1", "storage": "local", "bridge": "vmbr0", "template_vmid": 9000,
        "vmid": 10_000 + index, "address": address or f"127.21.0.{index + 1}", "state": ServerState.ACTIVE, "desired": Desired.RUNNING,
        "desired_by": "owner", "edge": Edge.OPEN, "token_version": 2, "created_at": 0,
    }  # fmt: skip
    return Server(**(values | changes))


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    made = CertificateAuthority(tmp_path / "ca")
    made.ensure()
    return made


def settings(tmp_path: Path, port: int, **changes: Any) -> AgentSettings:
    values: dict[str, Any] = {"port": port, "ca_dir": tmp_path / "ca", "master_secret": MASTER, "timeout_s": 2.0}
    return AgentSettings(**(values | changes))


# Against the lab's agents


class Lab:
    """Three game servers' agents with certificates of the project's CA, and the client."""

    def __init__(self, client: AgentClient, part: Any, world: World, faults: Faults) -> None:
        self.client, self.part, self.world, self.faults = client, part, world, faults
        self.servers = [server(i) for i in range(3)]

    def agent(self, index: int) -> LabAgent:
        agent = self.world.containers[10_000 + index].agent
        assert agent is not None
        return agent


@pytest.fixture
async def lab(tmp_path: Path, authority: CertificateAuthority) -> AsyncIterator[Lab]:
    config = LabConfig.model_validate(
        {
            "state_file": tmp_path / "lab.json",
            "control": {"token": "control-token"},
            "proxmox": {"ca_dir": tmp_path / "pve"},
            "agents": {"port": 0, "start_s": 0.05, "stop_s": 0.05, "crash_restart_s": 0.05},
            "bridge": {"token": "bridge-token"},
            "dns": {"tsig_secret": "c2VjcmV0"},
            "runner": {"project_dir": tmp_path / "project"},
        }
    )
    world, faults = World(), Faults()
    world.nodes["pve1"] = LabNode("pve1")
    for index in range(3):
        s = server(index)
        certificate, key = authority.issue(s.id, s.address)
        token = agent_token(MASTER, s.id, 2).get_secret_value()
        agent = LabAgent(s.id, "1.0.0", token, certificate=certificate, key=key, prepared=True)
        world.containers[s.vmid] = LabContainer(
            s.vmid, "pve1", status="running", config={"net0": f"name=eth0,bridge=vmbr0,ip={s.address}/16"}, started_at=1.0, agent=agent
        )
    part = await lab_agents.start(config, world, faults)
    client = AgentClient(settings(tmp_path, part.port))
    yield Lab(client, part, world, faults)
    await client.close()
    await part.stop()


async def until(condition: Callable[[], Awaitable[bool]], deadline_s: float = 5.0) -> None:
    ends = time.monotonic() + deadline_s
    while not await condition():
        assert time.monotonic() < ends, "never happened"
        await asyncio.sleep(0.02)


async def test_all_are_probed(lab: Lab) -> None:
    results = await lab.client.probe(lab.servers)
    assert set(results) == {"srv-0", "srv-1", "srv-2"}
    for result in results.values():
        assert isinstance(result, Known) and result.value.state is WorkloadState.STOPPED and result.value.version == "1.0.0"


async def test_a_workload_is_started_restarted_and_stopped(lab: Lab) -> None:
    s = lab.servers[0]
    ready, reason = await lab.client.ready(s)
    assert not ready and "stopped" in reason
    await lab.client.start(s, 7)
    await until(lambda: _ready(lab, s))
    assert (await lab.client.status(s)).state is WorkloadState.RUNNING
    await lab.client.restart(s, 7)
    await until(lambda: _ready(lab, s))
    await lab.client.stop(s, 8)
    await until(lambda: _is(lab, s, WorkloadState.STOPPED))
    assert [c["lease_token"] for c in lab.agent(0).calls] == [7, 7, 8]
    assert (await lab.client.health(s))["server_id"] == s.id


async def _ready(lab: Lab, s: Server) -> bool:
    return (await lab.client.ready(s))[0]


async def _is(lab: Lab, s: Server, state: WorkloadState) -> bool:
    return (await lab.client.status(s)).state is state


async def test_an_older_lease_token_is_fenced(lab: Lab) -> None:
    await lab.client.start(lab.servers[0], 9)
    with pytest.raises(Fenced, match="clock set back"):
        await lab.client.stop(lab.servers[0], 8)


async def test_an_agent_that_is_not_ready_for_orders_is_busy(lab: Lab) -> None:
    lab.faults.arm("agent:10000", Mode.ERROR, call="POST *", status=409, message="x", count=1)
    with pytest.raises(Conflict):
        await lab.client.start(lab.servers[0], 1)
    lab.agent(0).prepared = False
    with pytest.raises(Busy, match="provisioning") as caught:
        await lab.client.start(lab.servers[0], 1)
    assert caught.value.retry_after == 5


@pytest.mark.parametrize("version", [1, 3])
async def test_a_neighbouring_token_version_is_accepted(lab: Lab, version: int) -> None:
    lab.agent(0).token = agent_token(MASTER, "srv-0", version).get_secret_value()
    results = await lab.client.probe(lab.servers)
    assert isinstance(results["srv-0"], Known)
    await lab.client.start(lab.servers[0], 1)
    assert sum(c["effect"] for c in lab.agent(0).calls) == 1


async def test_a_refused_token_is_distrusted(lab: Lab) -> None:
    lab.agent(0).token = agent_token(MASTER, "srv-0", 4).get_secret_value()
    lab.agent(1).token = agent_token(MASTER, "srv-0", 2).get_secret_value()
    results = await lab.client.probe(lab.servers)
    for name in ("srv-0", "srv-1"):
        result = results[name]
        assert isinstance(result, Unknown) and result.reason.startswith("distrusted: ")
    assert isinstance(results["srv-2"], Known)
    for call in (lab.client.status(lab.servers[0]), lab.client.start(lab.servers[0], 1)):
        with pytest.raises(Unauthorized, match="ZLH_AGENT__MASTER_SECRET"):
            await call


async def test_another_servers_identity_is_distrusted(lab: Lab) -> None:
    lab.agent(0).claims = "srv-9"
    results = await lab.client.probe(lab.servers)
    result = results["srv-0"]
    assert isinstance(result, Unknown) and result.reason.startswith("distrusted: ") and "srv-9" in result.reason
    for call in (lab.client.status(lab.servers[0]), lab.client.health(lab.servers[0]), lab.client.ready(lab.servers[0])):
        with pytest.raises(BadAnswer, match="srv-9"):
            await call


async def test_another_authoritys_certificate_is_distrusted(lab: Lab, tmp_path: Path) -> None:
    other = CertificateAuthority(tmp_path / "other")
    other.ensure()
    lab.agent(0).certificate, lab.agent(0).key = other.issue("srv-0", lab.servers[0].address)
    lab.agent(1).certificate, lab.agent(1).key = CertificateAuthority(tmp_path / "ca").issue("srv-1", "127.99.0.1")
    for vmid in (10_000, 10_001):
        await lab.world.changed(vmid)
    results = await lab.client.probe(lab.servers)
    for name in ("srv-0", "srv-1"):
        result = results[name]
        assert isinstance(result, Unknown) and result.reason.startswith("distrusted: "), result
    for call in (lab.client.status(lab.servers[0]), lab.client.start(lab.servers[1], 1)):
        with pytest.raises(BadAnswer, match="certificate"):
            await call


async def test_a_rotated_authority_is_noticed(lab: Lab, tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "ca")
    assert isinstance((await lab.client.probe(lab.servers))["srv-0"], Known)
    authority.rotate()
    lab.agent(0).certificate, lab.agent(0).key = authority.issue("srv-0", lab.servers[0].address)
    await lab.world.changed(10_000)
    results = await lab.client.probe(lab.servers)
    assert all(isinstance(r, Known) for r in results.values()), results


async def test_a_dead_agent_is_unknown_and_the_others_are_known(lab: Lab) -> None:
    lab.agent(0).alive = False
    await lab.world.changed(10_000)
    results = await lab.client.probe(lab.servers)
    assert results["srv-0"] == Unknown("no answer, twice")
    assert isinstance(results["srv-1"], Known)
    for call in (lab.client.status(lab.servers[0]), lab.client.start(lab.servers[0], 1)):
        with pytest.raises(Unreachable, match="refused"):
            await call


async def test_one_lost_answer_is_asked_for_again(lab: Lab) -> None:
    lab.faults.arm("agent:10000", Mode.LOSE_ANSWER, call="GET /status", count=1)
    assert isinstance((await lab.client.probe(lab.servers))["srv-0"], Known)
    lab.faults.arm("agent:10000", Mode.UNREACHABLE, call="GET /status", count=1)
    assert (await lab.client.status(lab.servers[0])).server_id == "srv-0"


async def test_a_lost_answer_to_an_order_is_ambiguous_and_not_repeated(lab: Lab) -> None:
    lab.faults.arm("agent:10000", Mode.LOSE_ANSWER, call="POST /game/start", count=1)
    with pytest.raises(AmbiguousEffect):
        await lab.client.start(lab.servers[0], 1)
    assert len(lab.agent(0).calls) == 1


async def test_a_frozen_agent_ends_at_the_time_out(lab: Lab, tmp_path: Path) -> None:
    lab.agent(0).frozen = True
    hasty = AgentClient(settings(tmp_path, lab.part.port, timeout_s=0.3))
    with pytest.raises(AmbiguousEffect):
        await hasty.stop(lab.servers[0], 1)
    with pytest.raises(Unreachable):
        await hasty.status(lab.servers[0])
    results = await hasty.probe(lab.servers)
    assert results["srv-0"] == Unknown("no answer, twice") and isinstance(results["srv-1"], Known)
    lab.agent(0).frozen = False
    await hasty.close()


async def test_a_developer_container_without_code_server_has_nothing_to_order(lab: Lab) -> None:
    await lab.client.start(server(0, ctype=ContainerType.DEV), 1)
    assert lab.agent(0).calls == []
    with pytest.raises(Conflict):
        await lab.client.start(server(0, ctype=ContainerType.DEV, code_server=True), 1)


# Against peers of our own


class Peer:
    """Answers with whatever bytes ``reply`` returns for a path; counts connections."""

    def __init__(self) -> None:
        self.reply: Callable[[str, str], bytes | Awaitable[bytes]] = lambda address, path: http(200, STATUS)
        self.requests: list[str] = []
        self.open = self.most = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head.decode())
            answer = self.reply(writer.get_extra_info("sockname")[0], head.split()[1].decode())
            writer.write(answer if isinstance(answer, bytes) else await answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


def http(status: int, body: Any, **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[tuple[Peer, AgentClient]]:
    made = Peer()
    listening = await asyncio.start_server(made.serve, "0.0.0.0", 0)
    client = AgentClient(settings(tmp_path, listening.sockets[0].getsockname()[1], tls=False, max_answer_bytes=2048, timeout_s=1.0, concurrency=8))
    yield made, client
    await client.close()
    listening.close()
    await listening.wait_closed()


@pytest.mark.parametrize(
    "change",
    [
        {"server_id": 5}, {"server_id": ""}, {"version": None}, {"state": "dancing"}, {"state": ["running"]}, {"ready": "yes"}, {"ready": 1},
        {"operation": 7}, {"operation": "a\nb"}, {"operation": "x" * 200}, {"maintenance": 0}, {"uptime_s": -1}, {"uptime_s": float("nan")},
        {"uptime_s": 10**400}, {"restarts": 1.5}, {"restarts": True}, {"players": "many"}, {"provisioning_complete": None},
        {"missing": "x"}, {"missing": [1]}, {"missing": ["x"] * 33}, {"last_crash": []}, {"last_crash": {str(i): i for i in range(40)}},
    ],
)  # fmt: skip
async def test_a_field_that_is_not_of_its_kind_spoils_the_answer(peer: tuple[Peer, AgentClient], change: dict[str, Any]) -> None:
    there, client = peer
    there.reply = lambda address, path: http(200, {**STATUS, **change})
    with pytest.raises(BadAnswer, match=next(iter(change))):
        await client.status(server(0))
    result = (await client.probe([server(0)]))["srv-0"]
    assert isinstance(result, Unknown) and next(iter(change)) in result.reason


@pytest.mark.parametrize(
    "raw",
    [
        http(200, b""), http(200, b"<html>"), http(200, b"[]"), http(200, b"null"), http(200, b"[" * 2000), http(200, b"\xff\xfe"),
        http(200, b'"' + b"x" * 4000 + b'"'), http(302, b"", Location="http://127.0.0.1:1/"), http(204, b""), http(418, STATUS),
        b"HTTP/1.1 200 X\r\n\r\n" + b"x" * 10_000,
    ],
)  # fmt: skip
async def test_what_is_no_status_is_a_bad_answer(peer: tuple[Peer, AgentClient], raw: bytes) -> None:
    there, client = peer
    there.reply = lambda address, path: raw
    with pytest.raises(BadAnswer):
        await client.status(server(0))
    assert isinstance((await client.probe([server(0)]))["srv-0"], Unknown)


@pytest.mark.parametrize("length", [True, False])
async def test_an_answer_beyond_the_cap_is_refused_announced_or_not(peer: tuple[Peer, AgentClient], length: bool) -> None:
    there, client = peer
    whole = http(200, json.dumps(STATUS).encode() + b" " * 3000)
    there.reply = lambda address, path: whole if length else b"HTTP/1.1 200 X\r\n\r\n" + whole.partition(b"\r\n\r\n")[2]
    with pytest.raises(BadAnswer, match="2048 bytes"):
        await client.status(server(0))


async def test_text_of_an_agent_is_made_harmless(peer: tuple[Peer, AgentClient]) -> None:
    there, client = peer
    crash = {"class": "out\x1b[31m of\nmemory", "deep": {"a": 1}, "exit": 137, "text": "y" * 900}
    there.reply = lambda address, path: http(200, {**STATUS, "last_crash": crash, "missing": ["a\x00b"], "unknown": 1})
    status = await client.status(server(0))
    assert status == AgentStatus(
        "srv-0", "1.0.0", WorkloadState.RUNNING, True, None, players=3, missing=("a b",),
        last_crash={"class": "out [31m of memory", "exit": 137, "text": "y" * 400 + "…"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (http(412, {"detail": "older"}), Fenced),
        (http(409, {"detail": "busy", "operation": "start"}), Busy),
        (http(409, {"detail": "not installed"}), Conflict),
        (http(503, {"detail": "later"}), Busy),
        (http(429, {"detail": "later"}), RateLimited),
        (http(401, {"detail": "who?"}), Unauthorized),
        (http(422, {"detail": "what?"}), BadInput),
        (http(428, {"detail": "token?"}), BadInput),
        (http(404, b""), NotFound),
        (http(500, b"Traceback"), AmbiguousEffect),
        (http(302, b""), BadAnswer),
        (b"HTTP/1.1 202 X\r\nContent-Length: 10\r\n\r\n{", AmbiguousEffect),
        (b"", AmbiguousEffect),
        (b"SSH-2.0-OpenSSH\r\n", AmbiguousEffect),
        (http(202, b"x" * 4000), AmbiguousEffect),
    ],
)
async def test_refusals_of_an_order(peer: tuple[Peer, AgentClient], raw: bytes, expected: type[AutomationError]) -> None:
    there, client = peer
    there.reply = lambda address, path: raw
    with pytest.raises(expected) as caught:
        await client.start(server(0), 5)
    assert type(caught.value) is expected
    assert len(there.requests) == (3 if expected is Unauthorized else 1)
    assert all("x-zlh-lease-token: 5" in r.lower() for r in there.requests)


async def test_a_token_that_is_echoed_stays_out_of_errors(peer: tuple[Peer, AgentClient]) -> None:
    there, client = peer
    token = agent_token(MASTER, "srv-0", 2).get_secret_value()
    there.reply = lambda address, path: http(409, {"detail": f"you sent {token}"})
    with pytest.raises(Conflict) as caught:
        await client.start(server(0), 5)
    assert token not in str(caught.value) and f"Bearer {token}" in there.requests[0].replace("bearer", "Bearer")


async def test_an_answer_that_drips_ends_at_the_time_out(peer: tuple[Peer, AgentClient]) -> None:
    there, client = peer

    async def drip() -> bytes:
        await asyncio.sleep(5)
        return b""

    there.reply = lambda address, path: drip()
    began = time.monotonic()
    assert (await client.probe([server(0)]))["srv-0"] == Unknown("no answer, twice")
    assert time.monotonic() - began < 3.5


async def test_the_silent_do_not_hold_up_the_others(peer: tuple[Peer, AgentClient]) -> None:
    """Forty silent ones on eight places, two seconds each: if they kept their places, ten seconds would not do."""
    there, client = peer
    patient = AgentClient(client._settings.model_copy(update={"timeout_s": 2.0}))

    async def answer(address: str) -> bytes:
        index = int(address.rsplit(".", 1)[1]) - 1
        if index >= 44:
            await asyncio.sleep(10)
        return http(200, {**STATUS, "server_id": f"srv-{index}"})

    there.reply = lambda address, path: answer(address)
    results = await patient.probe([server(i, f"127.22.0.{i + 1}") for i in range(84)], within_s=5)
    await patient.close()
    assert sum(isinstance(r, Known) for r in results.values()) == 44
    assert all(isinstance(results[f"srv-{i}"], Known) for i in range(44))


async def test_where_all_are_slow_nobody_makes_room(peer: tuple[Peer, AgentClient]) -> None:
    """Slowness of everybody is a sign of overload: more at once would end in no answer at all."""
    there, client = peer

    async def slowly(address: str) -> bytes:
        await asyncio.sleep(0.6)
        return http(200, {**STATUS, "server_id": f"srv-{int(address.rsplit('.', 1)[1]) - 1}"})

    there.reply = lambda address, path: slowly(address)
    results = await client.probe([server(i, f"127.22.0.{i + 1}") for i in range(32)])
    assert all(isinstance(r, Known) for r in results.values()), results
    assert there.most <= 8


async def test_time_that_ran_out_is_said(peer: tuple[Peer, AgentClient]) -> None:
    there, client = peer

    async def never() -> bytes:
        await asyncio.sleep(5)
        return b""

    there.reply = lambda address, path: never()
    fleet = [server(i, f"127.22.0.{i + 1}") for i in range(60)]
    began = time.monotonic()
    results = await client.probe(fleet, within_s=0.6)
    assert time.monotonic() - began < 2
    assert len(results) == 60
    # The first eight were asked, but not for as long as it takes: their silence says no more than that of the others.
    assert all(isinstance(r, Unknown) and r.reason.startswith("not asked: ") for r in results.values())


async def test_a_cancelled_probe_leaves_no_task(peer: tuple[Peer, AgentClient]) -> None:
    there, client = peer

    async def never() -> bytes:
        await asyncio.sleep(5)
        return b""

    there.reply = lambda address, path: never()
    task = asyncio.create_task(client.probe([server(i, f"127.22.0.{i + 1}") for i in range(30)]))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    assert not [t for t in asyncio.all_tasks() if "FanOut" in repr(t.get_coro())]


async def test_plain_http_is_for_loopback_alone(tmp_path: Path) -> None:
    client = AgentClient(settings(tmp_path, 18888, tls=False))
    far = server(0, "10.20.0.11")
    for call in (client.probe([far]), client.status(far), client.start(far, 1)):
        with pytest.raises(MisconfiguredSetting, match="ZLH_AGENT__TLS"):
            await call
    await client.close()


async def test_a_missing_authority_or_master_names_the_setting(tmp_path: Path, authority: CertificateAuthority) -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_AGENT__CA_DIR"):
        await AgentClient(settings(tmp_path, 1, ca_dir=tmp_path / "nowhere")).probe([server(0)])
    with pytest.raises(MisconfiguredSetting, match="ZLH_AGENT__MASTER_SECRET"):
        await AgentClient(settings(tmp_path, 1, master_secret=SecretStr(""))).probe([server(0)])


async def test_nobody_to_probe_needs_nothing(tmp_path: Path) -> None:
    assert await AgentClient(settings(tmp_path, 1, ca_dir=tmp_path / "nowhere")).probe([]) == {}


async def test_a_tls_client_does_not_talk_to_a_plain_peer(tmp_path: Path, authority: CertificateAuthority) -> None:
    there = Peer()
    listening = await asyncio.start_server(there.serve, "127.21.0.1", 0)
    client = AgentClient(settings(tmp_path, listening.sockets[0].getsockname()[1], timeout_s=0.5))
    with pytest.raises(Unreachable):
        await client.status(server(0))
    assert not any("authorization" in r.lower() for r in there.requests)
    await client.close()
    listening.close()
    await listening.wait_closed()
