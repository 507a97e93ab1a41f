"""The whole house on real parts: LXC containers, SSH and Ansible, systemd, Knot, the agent, a real game server, a real player.

One stack; each server's provisioning is interrupted in the middle of another playbook, so that what is proven of a server afterwards is
proven of one that was resumed.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import testinfra  # type: ignore[import-untyped]  # it ships no types

from flows.cli.demo import provisioning
from flows.cli.demo.stage import Stage
from flows.cli.stack import PROJECT, Stack
from flows.clients.engine import PrefectEngine
from flows.clients.reach import LOCK_FILE
from flows.domain.server import Server
from tests.support.bot import Player
from tests.support.kills import interrupted, order, ordered_about, over, playbooks_left
from tests.support.stacks import ScratchStack, acting, standing

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="not root: no containers"),
]

#: Seconds after ``/ready`` within which a player must be able to join.
JOIN_S = 10.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with standing(ScratchStack(tmp_path_factory.mktemp("house"), fleet="lxc", short=True, say=lambda _: None)) as stack:
        yield stack


@pytest.fixture
async def stage(stack: Stack) -> AsyncIterator[Stage]:
    async with acting(stack) as stage:
        yield stage


async def record(stage: Stage, name: str) -> Server:
    found = await stage.server(name)
    assert found is not None
    return found


def host(stage: Stage, server: Server) -> Any:
    """A container, by the node's ``pct`` as a person would enter it."""
    node = stage.lab.endpoints["node"]
    config = stage.stack.dir / f"ssh-{server.vmid}"
    known = stage.stack.dir / "known_hosts"
    known.write_text(scan(server.address))  # this test's own trust; the product's has a test
    config.write_text(f"Host *\n  User root\n  IdentitiesOnly yes\n  IdentityFile {node['private_key']}\n  UserKnownHostsFile {known}\n")
    return testinfra.get_host(f"ssh://{server.address}", ssh_config=str(config))


def scan(address: str) -> str:
    """Lines ``address type key`` of what a host offers."""
    return subprocess.run(["ssh-keyscan", address], capture_output=True, text=True, check=True, timeout=20).stdout


async def players_port(stage: Stage) -> int:
    return stage.settings.proxy.player_port


async def uptime_of_proxy(stage: Stage) -> float:
    token = stage.settings.proxy.token.get_secret_value()
    answer = await stage.http.get(f"{stage.settings.proxy.url}/status", headers={"Authorization": f"Bearer {token}"})
    return float(answer.json()["uptime_s"])


async def agent(stage: Stage, server: Server, path: str) -> httpx.Response:
    """As the controller asks: over TLS by our CA, with the server's own token."""
    from flows import bootstrap

    async with bootstrap.deps(stage.settings) as deps:
        token = deps.identity(server).token.get_secret_value()
    ca = ssl.create_default_context(cafile=stage.settings.agent.ca_dir / "ca.pem")
    async with httpx.AsyncClient(verify=ca) as client:
        return await client.get(
            f"https://{server.address}:{stage.settings.agent.port}{path}", headers={"Authorization": f"Bearer {token}"}, timeout=10
        )


async def test_a_game_is_joined_within_seconds_of_its_readiness(stage: Stage) -> None:
    """Killed while its container is made trustworthy. The bot tries from the moment of readiness on; the proxy is never restarted."""
    before = await uptime_of_proxy(stage)
    began = time.monotonic()
    operation_id = await order(stage, "lotus")
    killed = asyncio.create_task(interrupted(stage, "lotus", operation_id, "flow", ("trust",)))

    async def ready() -> bool:
        server = await stage.server("lotus")
        if server is None or (await stage.operation(operation_id)).step not in ("start_workload", "publish_dns", "register_proxy", "activate"):
            return False
        with_answer = await agent(stage, server, "/ready")
        return with_answer.status_code == 200

    try:
        await stage.until("lotus ready", ready, 150)
        at = time.monotonic()
        while True:
            player = await asyncio.to_thread(visit, await players_port(stage), f"lotus.{stage.settings.dns.zone}")
            if player["ok"]:
                break
            assert time.monotonic() - at < 60, player
        joined = time.monotonic() - at
    finally:
        await killed
    assert joined < JOIN_S, f"{joined:.1f} s from readiness to the player in the game"
    assert await uptime_of_proxy(stage) >= before + (time.monotonic() - began) - 1, "the proxy was restarted"


def visit(port: int, name: str) -> dict[str, Any]:
    return Player(port, name, seconds=0.2, timeout_s=5.0).result()


async def test_what_provisioning_left_in_the_container(stage: Stage) -> None:
    server = await record(stage, "lotus")
    inside = host(stage, server)
    assert inside.service("zlh-agent").is_running and inside.service("zlh-agent").is_enabled
    assert inside.service("zlh-game").is_running
    assert inside.run("systemctl is-enabled zlh-game").stdout.strip() in ("static", "disabled"), "the agent decides when it runs"
    for path, owner, mode in (
        ("/etc/zlh/agent.toml", "root", 0o600),
        ("/etc/zlh/game.toml", "root", 0o600),
        ("/srv/game/config/FabricProxy-Lite.toml", "game", 0o600),
        ("/srv/game/server.jar", "game", 0o640),
        ("/root/.ssh/authorized_keys", "root", 0o600),
    ):
        file = inside.file(path)
        assert (file.user, file.mode) == (owner, mode), path
    assert inside.file("/root/.ssh/authorized_keys").content_string.startswith(f'from="{",".join(stage.settings.network.control_addresses)}"')
    secret = stage.settings.ansible.forwarding_secret.get_secret_value()
    assert secret in inside.file("/srv/game/config/FabricProxy-Lite.toml").content_string
    health = (await agent(stage, server, "/health")).json()
    assert health["server_id"] == server.id
    status = (await agent(stage, server, "/status")).json()
    assert (status["state"], status["ready"]) == ("running", True)
    assert status["provisioning_complete"] is True, status


async def test_a_host_key_of_its_own_is_known_and_no_other(stage: Stage) -> None:
    from flows.state import host_keys

    server = await record(stage, "lotus")
    async with stage.database.read() as tx:
        known = await host_keys.get(tx, server.id)
    offered = {line.split()[1]: line.split()[2] for line in (await asyncio.to_thread(scan, server.address)).splitlines()}
    assert set(offered) == {"ssh-ed25519"}, "no key of the template's is offered"
    assert offered["ssh-ed25519"] in known["ssh-ed25519"].split()


async def test_no_secret_lies_about(stage: Stage) -> None:
    """Neither in the logs of any process nor in the engine's database."""
    server = await record(stage, "lotus")
    from flows import bootstrap

    async with bootstrap.deps(stage.settings) as deps:
        token = deps.identity(server).token.get_secret_value()
    secrets = [token, stage.settings.ansible.forwarding_secret.get_secret_value(), stage.settings.agent.master_secret.get_secret_value()]
    places = [*(stage.stack.dir / "logs").glob("*.log"), *(stage.stack.dir / "prefect").glob("*.db*"), stage.stack.dir / "lab" / "lab.log"]
    assert len(places) > 5
    for place in places:
        content = place.read_bytes()
        assert not [s for s in secrets if s.encode() in content], place
    scratch = stage.settings.ansible.scratch_dir
    assert not [name for name in os.listdir(scratch) if name.startswith("zlh-play-")], "a play's private directory is left"


async def test_by_hand_the_agents_playbook_changes_nothing(stage: Stage) -> None:
    """What the flow deployed is what a person's ansible-playbook deploys: converged already, and strict SSH by the exported known_hosts."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("ZLH_")} | {"LAB_ENV_FILE": str(stage.stack.env_file)}
    argv = [str(PROJECT / ".venv/bin/ansible-playbook"), "-i", "inventories/lab", "playbooks/deploy_agent.yml"]
    done = await asyncio.to_thread(subprocess.run, argv, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    recap = [line for line in done.stdout.splitlines() if "changed=" in line]
    assert recap and all("changed=0" in line and "failed=0" in line for line in recap), recap


async def test_a_deployment_by_order_keeps_the_game_running(stage: Stage) -> None:
    server = await record(stage, "lotus")
    before = host(stage, server).check_output("systemctl show -P MainPID zlh-game")
    answer = await stage.http.post(
        f"http://{stage.settings.api.public_bind}/api/servers/{server.id}/deploy-agent",
        headers={"Authorization": f"Bearer {stage.settings.api.admin_token.get_secret_value()}"},
    )
    assert answer.status_code == 202, answer.text
    await over(stage, answer.json()["operation"]["id"])
    assert host(stage, server).check_output("systemctl show -P MainPID zlh-game") == before


async def test_a_silent_agent_is_restarted_through_its_node(stage: Stage) -> None:
    server = await record(stage, "lotus")
    inside = host(stage, server)
    before = inside.check_output("systemctl show -P MainPID zlh-game")
    inside.check_output("systemctl stop zlh-agent")
    answer = await stage.http.post(
        f"http://{stage.settings.api.public_bind}/api/servers/{server.id}/restart-agent",
        headers={"Authorization": f"Bearer {stage.settings.api.admin_token.get_secret_value()}"},
    )
    assert answer.status_code == 202, answer.text
    await over(stage, answer.json()["operation"]["id"])
    assert inside.service("zlh-agent").is_running
    assert inside.check_output("systemctl show -P MainPID zlh-game") == before


async def test_a_developers_container_survives_a_dead_worker(stage: Stage) -> None:
    """Killed while its agent is deployed."""
    body = {**provisioning.DEV, "memory_mb": 1024, "name": "workbench", "request_nonce": "workbench"}
    await interrupted(stage, "workbench", await stage.order("acme", body), "worker", ("deploy_agent",))
    inside = host(stage, await record(stage, "workbench"))
    assert inside.user("dev").exists
    assert inside.file("/home/dev/workspace").is_directory
    assert inside.service("zlh-agent").is_running


async def test_a_resumed_playbook_waits_for_the_targets_lock(stage: Stage) -> None:
    """Killed with its worker while the game is prepared; before it is taken up again somebody else's play holds the target."""
    operation_id = await order(stage, "fern")
    dead = asyncio.Event()
    killed = asyncio.create_task(interrupted(stage, "fern", operation_id, "both", ("prepare_workload",), dead.set))
    await asyncio.wait({killed, waiting := asyncio.create_task(dead.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert waiting.done(), killed.exception()

    async def ended() -> bool:
        return not playbooks_left(stage)

    engine = PrefectEngine(stage.settings.engine)
    try:
        await engine.pause(True)  # nothing is taken up again before somebody holds the target
        await stage.until("fern's playbook ended", ended, 60)
        inside = host(stage, await record(stage, "fern"))
        inside.check_output(f"systemd-run --unit=somebody flock {LOCK_FILE} sleep 1000")
    finally:
        await engine.pause(False)
        await engine.close()
    await stage.until("the second attempt at it", lambda: _attempt(stage, operation_id, 2), 60)
    await asyncio.sleep(8)
    assert not killed.done()
    assert (await stage.operation(operation_id)).step == "prepare_workload"
    inside.check_output("systemctl stop somebody")
    await killed


async def _attempt(stage: Stage, operation_id: str, number: int) -> bool:
    operation = await stage.operation(operation_id)
    return operation.attempt == number and operation.state == "running"


async def test_stop_start_and_restart(stage: Stage) -> None:
    name = f"lotus.{stage.settings.dns.zone}"
    port = await players_port(stage)
    await over(stage, await ordered_about(stage, "lotus", "stop"))
    assert not (await asyncio.to_thread(visit, port, name))["ok"]
    assert host(stage, await record(stage, "lotus")).check_output("systemctl show -P ActiveState zlh-game") == "inactive"
    await over(stage, await ordered_about(stage, "lotus", "start"))
    assert (await asyncio.to_thread(visit, port, name))["ok"]
    await over(stage, await ordered_about(stage, "lotus", "restart"))
    assert (await asyncio.to_thread(visit, port, name))["ok"]


async def test_deletion_leaves_nothing(stage: Stage) -> None:
    assert (await provisioning.nothing_left(stage)).failures == []
    for name in ("lotus", "workbench", "fern"):
        await over(stage, await ordered_about(stage, name, "delete"))
    state = await stage.lab_call("GET", "/state")
    assert not [c for c in state["containers"].values() if not c["template"]]
    assert not [d for d in (stage.stack.dir / "lab").rglob("rootfs") if any(d.parent.name.endswith(str(n)) for n in range(10_000, 10_100))]
    records = json.dumps(state["parts"]["dns"]["records"])
    assert "lotus" not in records and "fern" not in records
