"""The product's own clients against the lab's parts: what one side says, the other understands."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from flows.clients.agent_token import agent_token
from flows.clients.agents import AgentClient
from flows.clients.bridge import BridgeClient
from flows.clients.ca import CertificateAuthority
from flows.clients.catalog import CatalogClient
from flows.clients.dns import DnsClient
from flows.clients.lab_runner import LabRunner
from flows.clients.notifier import DiscordNotifier
from flows.domain.agent import WorkloadState
from flows.domain.known import Known, Unknown
from flows.domain.ports import Play
from flows.domain.server import ContainerType, Desired, Edge, Server, ServerState
from flows.domain.sources import Record
from flows.errors import AmbiguousEffect, BadAnswer, Busy, Conflict, Fenced, Unproven, Unreachable
from flows.lab import agents, artifacts, bridge, discord, dns, runner
from flows.lab.config import LabConfig
from flows.lab.faults import Faults, Mode
from flows.lab.serving import Site, free_port
from flows.lab.world import LabAgent, World
from flows.settings import AgentSettings, AnsibleSettings, ArtifactSettings, DnsSettings, NotifySettings, ProxySettings

MASTER = SecretStr("m" * 48)
Config = Callable[..., LabConfig]


@pytest.fixture
def server() -> Server:
    return Server(
        id="srv-1", customer_id="c1", name="mc1", ctype=ContainerType.GAME, flavor="fabric", version="1.21.4", memory_mb=2048, cores=2,
        disk_gb=10, node="pve1", storage="local", bridge="vmbr0", template_vmid=9000, vmid=10001, address="127.20.9.1",
        state=ServerState.CREATING, desired=Desired.RUNNING, desired_by="customer", edge=Edge.WITHDRAWN, token_version=1, created_at=0,
    )  # fmt: skip


@pytest.fixture
def deployed(world: World, tmp_path: Path) -> LabAgent:
    """An agent with its own token and certificate, prepared."""
    authority = CertificateAuthority(tmp_path / "agents-ca")
    authority.ensure()
    certificate, key = authority.issue("srv-1", "127.20.9.1")
    token = agent_token(MASTER, "srv-1", 1).get_secret_value()
    agent = LabAgent("srv-1", "0.1.0", token, certificate=certificate, key=key, prepared=True)
    world.containers[10001].agent = agent
    return agent


@pytest.fixture
async def fleet(lab_config: Config, world: World, faults: Faults, deployed: LabAgent) -> AsyncIterator[agents.AgentsPart]:
    part = await agents.start(lab_config(agents={"start_s": 1.0}), world, faults)
    yield part
    await part.stop()


@pytest.fixture
async def client(fleet: agents.AgentsPart, tmp_path: Path) -> AsyncIterator[AgentClient]:
    client = AgentClient(AgentSettings(port=fleet.port, ca_dir=tmp_path / "agents-ca", master_secret=MASTER, timeout_s=1.0))
    yield client
    await client.close()


async def test_agents_start_stop_and_fence(client: AgentClient, server: Server, eventually: Any) -> None:
    assert (await client.health(server))["version"] == "0.1.0"
    assert (await client.ready(server))[0] is False
    await client.start(server, 5)
    with pytest.raises(Busy, match="start"):
        await client.stop(server, 5)

    async def ready() -> bool:
        return (await client.ready(server))[0]

    await eventually(ready)
    status = await client.status(server)
    assert status.state is WorkloadState.RUNNING and status.ready and status.operation is None and status.provisioning_complete
    with pytest.raises(Fenced, match="4"):
        await client.stop(server, 4)
    await client.restart(server, 6)
    assert (await client.status(server)).state in (WorkloadState.STOPPING, WorkloadState.STARTING)


async def test_a_sweep_tells_offline_unready_and_distrusted_apart(
    client: AgentClient, server: Server, fleet: agents.AgentsPart, faults: Faults, deployed: LabAgent
) -> None:
    async def probe() -> Known[Any] | Unknown:
        return (await client.probe([server]))[server.id]

    answer = await probe()
    assert isinstance(answer, Known) and answer.value.ready is False
    faults.arm("agents", Mode.PARTIAL, count=1)
    assert isinstance(await probe(), Unknown)
    await fleet.manipulate("impersonate", {"vmid": 10001, "server_id": "srv-2"})
    other = await probe()
    assert isinstance(other, Unknown) and other.reason.startswith("distrusted:")
    await fleet.manipulate("revive", {"vmid": 10001})
    await fleet.manipulate("rotate", {"vmid": 10001, "token": "not-ours"})
    refused = await probe()
    assert isinstance(refused, Unknown) and refused.reason.startswith("distrusted:")
    await fleet.manipulate("rotate", {"vmid": 10001, "token": agent_token(MASTER, "srv-1", 2).get_secret_value()})
    assert isinstance(await probe(), Known)  # the neighbouring version
    await fleet.manipulate("kill", {"vmid": 10001})
    dead = await probe()
    assert isinstance(dead, Unknown) and not dead.reason.startswith("distrusted:")
    with pytest.raises(Unreachable):
        await client.start(server, 9)
    await fleet.manipulate("revive", {"vmid": 10001})
    await fleet.manipulate("freeze", {"vmid": 10001})
    with pytest.raises(AmbiguousEffect):
        await client.start(server, 9)


async def test_a_certificate_of_another_address_is_not_trusted(
    client: AgentClient, server: Server, world: World, deployed: LabAgent, tmp_path: Path
) -> None:
    deployed.certificate, deployed.key = CertificateAuthority(tmp_path / "agents-ca").issue("srv-1", "127.20.9.77")
    await world.changed(10001)
    with pytest.raises(BadAnswer, match="certificate"):
        await client.status(server)


async def test_the_bridge_registers_fences_and_rehydrates(lab_config: Config, world: World, faults: Faults) -> None:
    part = await bridge.start(lab_config(), world, faults)
    client = BridgeClient(ProxySettings(url=part.endpoints["url"], token=SecretStr("bridge-token"), timeout_s=2))
    try:
        await client.register("mc1", "127.20.9.1", 25565, 5)
        view = await client.view()
        assert view.registrations["mc1"].port == 25565 and view.uptime_s >= 0
        with pytest.raises(Fenced):
            await client.deregister("mc1", 4)
        faults.arm("bridge", Mode.PARTIAL)
        with pytest.raises(BadAnswer):
            await client.view()
        faults.clear()
        with pytest.raises(Busy):
            await client.rehydrate()
        faults.arm("bridge", Mode.LOSE_ANSWER, call="DELETE *", count=1)
        with pytest.raises(AmbiguousEffect):
            await client.deregister("mc1", 5)
        assert not (await client.view()).registrations
    finally:
        await client.close()
        await part.stop()


async def test_dns_publishes_under_prerequisites_and_reads_by_transfer(lab_config: Config, world: World, faults: Faults) -> None:
    config = lab_config()
    part = await dns.start(config, world, faults)
    client = DnsClient(DnsSettings(server=part.endpoints["server"], zone="play.example", tsig_secret=config.dns.tsig_secret, timeout_s=2))
    name = "mc1.play.example"
    try:
        wanted = [Record(name, "A", "192.0.2.1"), Record(f"_minecraft._tcp.{name}", "SRV", f"0 5 25570 {name}")]
        await client.publish(name, wanted, "srv-1", [])
        zone = await client.zone()
        assert zone.owners == {name: "srv-1"} and zone.records[name] == (wanted[0],)
        seen = await client.records(name)
        await part.manipulate("replace", {"name": name, "rtype": "A", "value": "203.0.113.9"})
        with pytest.raises(Conflict):
            await client.publish(name, wanted, "srv-1", seen)
        faults.arm("dns", Mode.LOSE_ANSWER, call="UPDATE *", count=1)
        with pytest.raises(AmbiguousEffect):
            await client.publish(name, wanted, "srv-1", await client.records(name))
        assert (await client.zone()).records[name] == (wanted[0],)
        faults.arm("dns", Mode.PARTIAL, count=2)
        with pytest.raises(Unproven):
            await client.zone()
        await client.withdraw(name, "srv-1", await client.records(name))
        assert name not in (await client.zone()).records
    finally:
        await client.close()
        await part.stop()


async def test_discord_takes_what_the_notifier_sends(lab_config: Config, world: World, faults: Faults) -> None:
    part = await discord.start(lab_config(discord={"webhooks": {"alerts-critical": "101/aaa"}, "requests": 1, "window_s": 60}), world, faults)
    settings = NotifySettings(
        base_url=part.endpoints["webhooks"], critical=SecretStr("101/aaa"), repairs=SecretStr("999/aaa"), ping_users=("7",), timeout_s=2
    )
    notifier = DiscordNotifier(settings)
    try:
        assert (await notifier.send("alerts-critical", "x" * 3000, ping=True, key="k1")).delivered
        message = part.inspect()["channels"]["alerts-critical"][0]
        assert len(message["content"]) <= 2000 and message["allowed_mentions"] == {"parse": [], "users": ["7"]}
        limited = await notifier.send("alerts-critical", "y", ping=False, key="k2")
        assert not limited.delivered and limited.status == 429 and limited.retry_after_s
        unknown = await notifier.send("alerts-repairs", "y", ping=False, key="k3")
        assert unknown.permanent and unknown.status == 404
    finally:
        await notifier.close()
        await part.stop()


async def test_the_catalog_is_read_and_the_runner_understood(
    lab_config: Config, world: World, faults: Faults, server: Server, tmp_path: Path
) -> None:
    meta = tmp_path / "project" / "roles" / "base" / "meta"
    meta.mkdir(parents=True)
    (meta / "argument_specs.yml").write_text("argument_specs: {main: {options: {base_authorized_key: {type: str, required: true}}}}")
    (tmp_path / "project" / "playbooks").mkdir()
    (tmp_path / "project" / "playbooks" / "bootstrap.yml").write_text("- hosts: all\n  roles: [base]\n")
    store = await artifacts.start(lab_config(), world, faults)
    plays = await runner.start(lab_config(), world, faults)

    def build() -> web.Application:
        app = web.Application()
        app.router.add_routes(plays.routes())
        return app

    site = Site(("127.0.0.1", free_port()), build)
    await site.open()
    catalog = CatalogClient(ArtifactSettings(url=store.endpoints["url"], cache_file=tmp_path / "catalog.json"))
    client = LabRunner(AnsibleSettings(runner="lab", lab_url=site.url, lab_token=SecretStr("control-token")))
    try:
        assert (await catalog.find("agent", "zlh-agent", "0.1.0")).sha256
        assert not catalog.stale
        play = Play("bootstrap.yml", server, {"base_authorized_key": "ssh-ed25519 AAAA x"})
        said: list[str] = []
        result = await client.run(play, said.append)
        assert result.ok and result.changed and result.facts["host_keys"] and said
        faults.arm("runner", Mode.FAIL_TASK, message="no space left", count=1)
        failed = await client.run(play)
        assert not failed.ok and "no space left" in failed.tail
        faults.arm("runner", Mode.LOSE_ANSWER, count=1)
        with pytest.raises(AmbiguousEffect):
            await client.run(play)
        gone = await client.run(dataclasses.replace(play, server=dataclasses.replace(server, vmid=10002)))
        assert gone.unreachable
    finally:
        for closing in (client.close(), catalog.close(), site.close(), plays.stop(), store.stop()):
            await closing
