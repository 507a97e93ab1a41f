"""The playbook runner, over a real connection, against a project of its own and a real artifact server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from flows.lab import agents, artifacts
from flows.lab.argspecs import problems
from flows.lab.artifacts import ArtifactsPart
from flows.lab.config import LabConfig
from flows.lab.faults import Faults, Mode
from flows.lab.part import Part, Routed
from flows.lab.runner import RunnerPart, start
from flows.lab.runner.project import read
from flows.lab.serving import Site
from flows.lab.world import LabContainer, World

Eventually = Callable[..., Awaitable[None]]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE controller"
ROLES = {
    "base": "base_authorized_key: {type: str, required: true}\n      base_control_addresses: {type: list, elements: str, required: true}",
    "zlh_agent": """zlh_agent_server_id: {type: str, required: true}
      zlh_agent_version: {type: str, required: true}
      zlh_agent_url: {type: str, required: true}
      zlh_agent_sha256: {type: str, required: true}
      zlh_agent_bind: {type: str, required: true}
      zlh_agent_port: {type: int, required: true}
      zlh_agent_kind: {type: str, required: true, choices: [game, dev]}
      zlh_agent_token: {type: str, required: true}
      zlh_agent_previous_token: {type: str}
      zlh_agent_tls_cert: {type: str}
      zlh_agent_tls_key: {type: str}""",
    "fabric_server": """fabric_server_version: {type: str, required: true}
      fabric_server_jar_url: {type: str, required: true}
      fabric_server_jar_sha256: {type: str, required: true}
      fabric_server_mods: {type: list, elements: dict}
      fabric_server_forwarding_secret: {type: str, required: true}""",
    "dev_environment": """dev_environment_runtimes: {type: list, elements: dict}
      dev_environment_code_server: {type: bool}
      dev_environment_workspace: {type: path}""",
}
PLAYBOOKS = {
    "bootstrap.yml": "base",
    "deploy_agent.yml": "zlh_agent",
    "preseed_fabric.yml": "fabric_server",
    "dev_environment.yml": "dev_environment",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for role, options in ROLES.items():
        (root / "roles" / role / "meta").mkdir(parents=True)
        (root / "roles" / role / "tasks").mkdir()
        (root / "roles" / role / "meta" / "argument_specs.yml").write_text(f"argument_specs:\n  main:\n    options:\n      {options}\n")
        (root / "roles" / role / "tasks" / "main.yml").write_text("- name: Go on\n  ansible.builtin.include_tasks: work.yml\n")
        (root / "roles" / role / "tasks" / "work.yml").write_text(
            "- name: First\n  ansible.builtin.debug:\n- name: Both\n  block:\n    - name: Second\n      ansible.builtin.debug:\n"
        )
    (root / "playbooks").mkdir()
    for name, role in PLAYBOOKS.items():
        (root / "playbooks" / name).write_text(f"- name: Play\n  hosts: all\n  roles:\n    - role: {role}\n")
    return root


@pytest.fixture
def config(lab_config: Callable[..., LabConfig], project: Path) -> LabConfig:
    return lab_config()


@pytest.fixture
async def part(config: LabConfig, world: World, faults: Faults) -> AsyncIterator[RunnerPart]:
    part = await start(config, world, faults)
    yield part
    await part.stop()


@pytest.fixture
async def store(config: LabConfig, world: World, faults: Faults) -> AsyncIterator[ArtifactsPart]:
    part = await artifacts.start(config, world, faults)
    yield part
    await part.stop()


@pytest.fixture
async def http(part: RunnerPart) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a listener that carries the part's routes, as the control API does."""

    def build() -> web.Application:
        app = web.Application()
        app.router.add_routes(part.routes())
        return app

    site = Site(("127.0.0.1", 0), build)
    await site.open()
    async with httpx.AsyncClient(base_url=site.url, timeout=10) as client:
        yield client
    await site.close()


Run = Callable[..., Awaitable[tuple[list[str], dict[str, Any]]]]


def order(playbook: str, variables: dict[str, Any] | None = None, secrets: dict[str, str] | None = None, **rest: Any) -> dict[str, Any]:
    server = {"id": "srv-1", "name": "mc1", "ctype": "game", "vmid": 10001, "address": "127.20.9.1", "hostname": "zlh-game-10001"}
    return {"playbook": playbook, "server": server, "variables": variables or {}, "secrets": secrets or {}, **rest}


@pytest.fixture
def run(http: httpx.AsyncClient) -> Run:
    """``await run(playbook, variables, secrets)`` → ``(tasks, end)``."""

    async def call(*args: Any, **rest: Any) -> tuple[list[str], dict[str, Any]]:
        answer = await http.post("/playbooks", json=order(*args, **rest))
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-ndjson"
        *tasks, end = [json.loads(line) for line in answer.text.splitlines()]
        assert all(task["event"] == "task" for task in tasks) and end["event"] == "end"
        assert set(end) == {"event", "ok", "changed", "unreachable", "facts", "tail", "failed_task"}
        return [task["task"] for task in tasks], end

    return call


BASE = {"base_authorized_key": KEY, "base_control_addresses": ["127.0.0.1"]}


def agent(store: ArtifactsPart, **other: Any) -> dict[str, Any]:
    entry = next(e for e in store.catalog() if e["name"] == "zlh-agent")
    return {
        "zlh_agent_server_id": "srv-1", "zlh_agent_version": entry["version"], "zlh_agent_url": entry["url"], "zlh_agent_sha256": entry["sha256"],
        "zlh_agent_bind": "127.20.9.1", "zlh_agent_port": 18888, "zlh_agent_kind": "game", **other,
    }  # fmt: skip


def fabric(store: ArtifactsPart) -> dict[str, Any]:
    jar = next(e for e in store.catalog() if e["kind"] == "jar")
    mods = [{key: e[key] for key in ("name", "url", "sha256")} for e in store.catalog() if e["kind"] == "mod"]
    return {
        "fabric_server_version": jar["version"], "fabric_server_jar_url": jar["url"], "fabric_server_jar_sha256": jar["sha256"],
        "fabric_server_mods": mods,
    }  # fmt: skip


TOKEN = {"zlh_agent_token": "very-secret-token"}
FORWARDING = {"fabric_server_forwarding_secret": "forwarding-secret"}


async def trusted(run: Run) -> None:
    assert (await run("bootstrap.yml", BASE))[1]["ok"]


async def test_it_is_a_part_with_routes(part: RunnerPart) -> None:
    assert isinstance(part, Part) and isinstance(part, Routed)


async def test_bootstrap_trusts_our_key_and_reads_the_host_key_back(run: Run, world: World) -> None:
    tasks, end = await run("bootstrap.yml", BASE)
    assert tasks == ["base : Go on", "base : First", "base : Second", "base : Both"]
    assert end["ok"] and end["changed"]
    container = world.containers[10001]
    assert container.trusted_key == KEY
    ((kind, line),) = end["facts"]["host_keys"].items()
    load_ssh_public_key(line.encode())
    assert kind == "ssh-ed25519" and line == f"{container.host_key} root@localhost"
    _, again = await run("bootstrap.yml", BASE)
    assert again["ok"] and not again["changed"] and again["facts"] == end["facts"]


async def test_deploy_makes_an_agent_that_answers_with_its_token(
    run: Run, world: World, config: LabConfig, faults: Faults, store: ArtifactsPart
) -> None:
    fleet = await agents.start(config, world, faults)
    try:
        await trusted(run)
        _, end = await run("deploy_agent.yml", agent(store, zlh_agent_port=fleet.port), TOKEN)
        assert end["ok"] and end["changed"]
        async with httpx.AsyncClient(headers={"Authorization": "Bearer very-secret-token"}) as http:
            health = (await http.get(f"http://127.20.9.1:{fleet.port}/health")).json()
            assert (health["server_id"], health["version"]) == ("srv-1", "0.1.0")
            assert not (await run("deploy_agent.yml", agent(store, zlh_agent_port=fleet.port), TOKEN))[1]["changed"]
            world.containers[10001].agent.highest_lease = 7  # type: ignore[union-attr]
            assert (await run("deploy_agent.yml", agent(store, zlh_agent_port=fleet.port), {"zlh_agent_token": "next"}))[1]["changed"]
            assert (await http.get(f"http://127.20.9.1:{fleet.port}/health")).status_code == 401
            assert world.containers[10001].agent.highest_lease == 7  # type: ignore[union-attr] # the file stays
    finally:
        await fleet.stop()


async def test_a_deploy_brings_a_killed_agent_back(run: Run, world: World, store: ArtifactsPart) -> None:
    await trusted(run)
    await run("deploy_agent.yml", agent(store), TOKEN)
    world.containers[10001].agent.alive = False  # type: ignore[union-attr]
    assert (await run("deploy_agent.yml", agent(store), TOKEN))[1]["changed"]
    assert world.containers[10001].agent.alive  # type: ignore[union-attr]


async def test_preseed_prepares_a_game_once(run: Run, world: World, store: ArtifactsPart) -> None:
    await trusted(run)
    await run("deploy_agent.yml", agent(store), TOKEN)
    _, end = await run("preseed_fabric.yml", fabric(store), FORWARDING)
    assert end["ok"] and end["changed"] and world.containers[10001].agent.prepared  # type: ignore[union-attr]
    assert not (await run("preseed_fabric.yml", fabric(store), FORWARDING))[1]["changed"]
    assert (await run("preseed_fabric.yml", fabric(store), {"fabric_server_forwarding_secret": "rotated"}))[1]["changed"]


async def test_dev_environment_prepares_and_starts_code_server(
    run: Run, world: World, config: LabConfig, faults: Faults, store: ArtifactsPart, eventually: Eventually
) -> None:
    fleet = await agents.start(config, world, faults)
    try:
        await trusted(run)
        await run("deploy_agent.yml", agent(store, zlh_agent_kind="dev", zlh_agent_port=fleet.port), TOKEN)
        runtime = next(e for e in store.catalog() if e["kind"] == "runtime")
        variables = {
            "dev_environment_runtimes": [{key: runtime[key] for key in ("name", "version", "url", "sha256")}],
            "dev_environment_code_server": True,
            "dev_environment_workspace": "/home/dev/workspace",
        }
        assert (await run("dev_environment.yml", variables))[1]["changed"]
        await eventually(lambda: fleet.inspect()["agents"]["10001"]["ready"])
        assert not (await run("dev_environment.yml", variables))[1]["changed"]
        refused = (await run("preseed_fabric.yml", fabric(store), FORWARDING))[1]
        assert not refused["ok"] and "dev container" in refused["tail"]
    finally:
        await fleet.stop()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"zlh_agent_kind": "web"}, "must be one of: game, dev"),
        ({"zlh_agent_port": "many"}, "zlh_agent_port"),
        ({"zlh_agent_vesion": "1"}, "zlh_agent_vesion is not among its arguments"),
    ],
)
async def test_bad_arguments_fail_before_anything_happens(run: Run, world: World, store: ArtifactsPart, change: dict[str, Any], text: str) -> None:
    await trusted(run)
    _, end = await run("deploy_agent.yml", agent(store, **change), TOKEN)
    assert not end["ok"] and not end["changed"] and text in end["tail"]
    assert end["failed_task"] == "Validating arguments against arg spec 'main'"
    assert world.containers[10001].agent is None


async def test_a_missing_secret_is_named_and_no_secret_is_shown(run: Run, store: ArtifactsPart, part: RunnerPart) -> None:
    await trusted(run)
    _, end = await run("deploy_agent.yml", agent(store))
    assert "missing required arguments: zlh_agent_token" in end["tail"]
    _, end = await run("deploy_agent.yml", agent(store, zlh_agent_bind="very-secret-token"), TOKEN)
    assert not end["ok"] and "very-secret-token" not in json.dumps(end) and "***" in end["tail"]
    assert "very-secret-token" not in str(part.inspect())


@pytest.mark.parametrize("name", ["nothing.yml", "../playbooks/bootstrap.yml", "/etc/passwd", ""])
async def test_an_unknown_playbook(run: Run, name: str) -> None:
    _, end = await run(name, BASE)
    assert not end["ok"] and f"the playbook: {name} could not be found" in end["tail"]


async def test_a_role_or_task_file_that_does_not_exist(run: Run, project: Path) -> None:
    (project / "playbooks" / "bootstrap.yml").write_text(
        "- hosts: all\n  tasks:\n    - name: Trust\n      ansible.builtin.include_role:\n        name: trust\n"
    )
    assert "the role 'trust' was not found" in (await run("bootstrap.yml", BASE))[1]["tail"]
    (project / "playbooks" / "bootstrap.yml").write_text("- hosts: all\n  roles: [base]\n")
    (project / "roles" / "base" / "tasks" / "work.yml").unlink()
    assert "work.yml could not be found" in (await run("bootstrap.yml", BASE))[1]["tail"]
    (project / "playbooks" / "bootstrap.yml").write_text("hosts: [")
    assert "not YAML" in (await run("bootstrap.yml", BASE))[1]["tail"]


async def test_unreachable_hosts(run: Run, world: World, store: ArtifactsPart) -> None:
    _, end = await run("deploy_agent.yml", agent(store), TOKEN)
    assert end["unreachable"] and "Permission denied" in end["tail"]  # not trusted yet
    world.containers[10001].status = "stopped"
    for playbook, variables in [("bootstrap.yml", BASE), ("deploy_agent.yml", agent(store))]:
        _, end = await run(playbook, variables, TOKEN if playbook != "bootstrap.yml" else {})
        assert end["unreachable"] and not end["ok"] and "No route to host" in end["tail"]
    world.containers[10001].status = "running"
    world.nodes["pve1"].online = False
    assert (await run("bootstrap.yml", BASE))[1]["unreachable"]
    world.nodes["pve1"].online = True
    world.containers.clear()
    assert (await run("bootstrap.yml", BASE))[1]["unreachable"]


async def test_a_wrong_checksum_a_missing_file_and_a_foreign_host(run: Run, world: World, store: ArtifactsPart, faults: Faults) -> None:
    await trusted(run)
    for change, text in [
        ({"zlh_agent_sha256": "0" * 64}, "did not match"),
        ({"zlh_agent_url": f"{store.site.url}/files/no.pyz"}, "HTTP Error 404"),
        ({"zlh_agent_url": "http://agent.example/x"}, "no route"),
    ]:
        _, end = await run("deploy_agent.yml", agent(store, **change), TOKEN)
        assert not end["ok"] and text in end["tail"]
    faults.arm("artifacts", Mode.UNREACHABLE, count=2)  # aiohttp's client tries a cut GET once more
    assert "Request failed" in (await run("deploy_agent.yml", agent(store), TOKEN))[1]["tail"]
    assert world.containers[10001].agent is None
    assert (await run("deploy_agent.yml", agent(store), TOKEN))[1]["ok"]


@pytest.mark.parametrize(
    ("secrets", "text"),
    [
        ({**TOKEN, "zlh_agent_tls_cert": "x"}, "required together"),
        ({**TOKEN, "zlh_agent_tls_cert": "no certificate", "zlh_agent_tls_key": "no key"}, "certificate and key do not fit"),
    ],
)
async def test_a_certificate_that_does_not_fit(run: Run, store: ArtifactsPart, secrets: dict[str, str], text: str) -> None:
    await trusted(run)
    _, end = await run("deploy_agent.yml", agent(store), secrets)
    assert not end["ok"] and text in end["tail"]


async def test_a_failing_task_changes_nothing(run: Run, world: World, faults: Faults) -> None:
    faults.arm("runner", Mode.FAIL_TASK, call="boot*", count=1, message="disk full")
    tasks, end = await run("bootstrap.yml", BASE)
    assert not end["ok"] and end["failed_task"] == tasks[-1] == "base : Second" and "disk full" in end["tail"]
    assert world.containers[10001].trusted_key is None
    assert (await run("bootstrap.yml", BASE))[1]["ok"]


async def test_a_lost_answer_comes_after_the_effect(run: Run, http: httpx.AsyncClient, world: World, faults: Faults) -> None:
    faults.arm("runner", Mode.LOSE_ANSWER, count=1)
    with pytest.raises(httpx.RemoteProtocolError):
        await run("bootstrap.yml", BASE)
    assert world.containers[10001].trusted_key == KEY
    faults.arm("runner", Mode.UNREACHABLE, count=1)
    with pytest.raises(httpx.RemoteProtocolError):
        await run("bootstrap.yml", BASE)
    faults.arm("runner", Mode.ERROR, count=1, status=500)
    assert (await http.post("/playbooks", json=order("bootstrap.yml", BASE))).status_code == 500


async def test_a_hanging_run_ends_at_its_time_out(run: Run, world: World, faults: Faults) -> None:
    faults.arm("runner", Mode.HANG, count=1)
    _, end = await run("bootstrap.yml", BASE, timeout_s=0.2)
    assert not end["ok"] and "longer than 0.2 s" in end["tail"] and end["failed_task"] == "base : Go on"
    assert world.containers[10001].trusted_key is None


async def test_a_run_dies_with_its_connection_and_leaves_no_trace(
    http: httpx.AsyncClient, part: RunnerPart, world: World, faults: Faults, eventually: Eventually
) -> None:
    faults.arm("runner", Mode.SLOW, seconds=60, count=1)
    task = asyncio.create_task(http.post("/playbooks", json=order("bootstrap.yml", BASE)))
    await eventually(lambda: part.inspect()["running"] == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: part.inspect()["running"] == 0)
    assert part.inspect()["runs"][-1]["ended"] == "caller gone"
    assert world.containers[10001].trusted_key is None


async def test_a_run_whose_caller_goes_during_a_download_installs_nothing(
    run: Run, http: httpx.AsyncClient, part: RunnerPart, world: World, faults: Faults, store: ArtifactsPart, eventually: Eventually
) -> None:
    await trusted(run)
    slow = faults.arm("artifacts", Mode.SLOW, seconds=1)
    task = asyncio.create_task(http.post("/playbooks", json=order("deploy_agent.yml", agent(store), TOKEN)))
    await eventually(lambda: slow.hits)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: part.inspect()["running"] == 0)
    assert part.inspect()["runs"][-1]["ended"] == "caller gone"
    assert world.containers[10001].agent is None


async def test_a_container_that_is_replaced_meanwhile_is_left_alone(
    run: Run, world: World, faults: Faults, store: ArtifactsPart, eventually: Eventually
) -> None:
    await trusted(run)
    slow = faults.arm("artifacts", Mode.SLOW, seconds=1)
    task = asyncio.create_task(run("deploy_agent.yml", agent(store), TOKEN))
    await eventually(lambda: slow.hits)
    old = world.containers[10001]
    world.containers[10001] = LabContainer(10001, "pve1", status="running", config=old.config, trusted_key=KEY)
    _, end = await task
    assert end["unreachable"] and "replaced" in end["tail"]
    assert old.agent is None and world.containers[10001].agent is None


async def test_a_container_that_stops_meanwhile_is_unreachable(run: Run, part: RunnerPart, world: World, eventually: Eventually) -> None:
    part._task_s = 0.3
    task = asyncio.create_task(run("bootstrap.yml", BASE))
    await eventually(lambda: part.inspect()["running"] == 1)
    world.containers[10001].status = "stopped"
    tasks, end = await task
    assert end["unreachable"] and end["failed_task"] == "base : Go on" == tasks[-1]


async def test_a_second_run_on_one_host_waits_for_the_first(run: Run, faults: Faults, store: ArtifactsPart) -> None:
    await trusted(run)
    slow = faults.arm("artifacts", Mode.SLOW, seconds=0.1)
    ends = await asyncio.gather(*(run("deploy_agent.yml", agent(store), TOKEN) for _ in range(2)))
    assert sorted(end["changed"] for _, end in ends) == [False, True] and slow.hits == 1


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"{}", json.dumps({**order("x.yml"), "extra": 1}).encode(), json.dumps(order("x.yml", timeout_s=0)).encode()]
)
async def test_malformed_orders_are_422(http: httpx.AsyncClient, body: bytes) -> None:
    assert (await http.post("/playbooks", content=body)).status_code == 422


OWN = Path(__file__).parents[3]
FILE = {"url": "http://127.0.0.1:1/x", "sha256": "0" * 64}
SENT: dict[str, dict[str, Any]] = {
    "bootstrap.yml": BASE,
    "deploy_agent.yml": {
        "zlh_agent_server_id": "0190", "zlh_agent_version": "0.1.0", "zlh_agent_url": FILE["url"], "zlh_agent_sha256": FILE["sha256"],
        "zlh_agent_bind": "127.20.9.1", "zlh_agent_port": 18888, "zlh_agent_kind": "game", "zlh_agent_token": "t",
        "zlh_agent_previous_token": "p", "zlh_agent_tls_cert": "c", "zlh_agent_tls_key": "k", "zlh_agent_control_addresses": ["10.0.0.1"],
    },
    "preseed_fabric.yml": {
        "fabric_server_flavor": "fabric", "fabric_server_version": "1.21.4", "fabric_server_memory_mb": 2048, "fabric_server_port": 25565,
        "fabric_server_jar_url": FILE["url"], "fabric_server_jar_sha256": FILE["sha256"], "fabric_server_mods": [{"name": "fabric-api", **FILE}],
        "fabric_server_forwarding_secret": "s",
    },
    "dev_environment.yml": {
        "dev_environment_runtimes": [{"name": "node", "version": "24.11.1", **FILE}], "dev_environment_code_server": True,
        "dev_environment_workspace": "/home/dev/workspace",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SENT))
def test_the_projects_own_roles_take_what_provisioning_sends(name: str) -> None:
    playbook = read(OWN, name)
    assert playbook.roles and playbook.tasks
    assert problems(OWN / "roles", playbook.roles, SENT[name]) == []
    assert problems(OWN / "roles", playbook.roles, {})
