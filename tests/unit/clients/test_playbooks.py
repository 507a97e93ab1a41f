"""What the runner gives to its supervisor: inventory, lock, environment, files; and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from flows.clients.playbooks import AnsibleRunner, sweep
from flows.domain.ports import Play
from flows.domain.server import ContainerType, Desired, Edge, Server, ServerState
from flows.errors import BadInput, MisconfiguredSetting
from flows.settings import AnsibleSettings


def server() -> Server:
    return Server(
        id="s1", customer_id="c1", name="alpha", ctype=ContainerType.GAME, flavor="fabric", version="1.21.4", memory_mb=2048, cores=2,
        disk_gb=10, node="pve1", storage="local", bridge="vmbr0", template_vmid=9000, vmid=10001, address="127.20.0.11",
        state=ServerState.CREATING, desired=Desired.RUNNING, desired_by="customer", edge=Edge.WITHDRAWN, token_version=1, created_at=0,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    (project / "playbooks").mkdir(parents=True)
    for name in ("bootstrap.yml", "deploy_agent.yml"):
        (project / "playbooks" / name).write_text("[]\n")
    (project / "ansible.cfg").write_text("[defaults]\n")
    return project


@pytest.fixture
def settings(project: Path, tmp_path: Path) -> AnsibleSettings:
    (tmp_path / "scratch").mkdir()
    return AnsibleSettings(project_dir=project, scratch_dir=tmp_path / "scratch", private_key=tmp_path / "id_ed25519")


def play(name: str = "deploy_agent.yml", **changes: Any) -> Play:
    return Play(**{"playbook": name, "server": server(), "variables": {"a": 1}, "secrets": {"zlh_agent_token": "geheim-1234"}, **changes})


def prepared(runner: AnsibleRunner, play: Play, keys: dict[str, str] | None) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    async def known(_: Server) -> dict[str, str]:
        return keys or {}

    runner._host_keys = known if keys is not None else None
    reach = asyncio.run(runner._reach(play))
    directory = runner._prepare(play, reach)
    hosts = json.loads((directory / "inventory" / "hosts.json").read_text())
    groups = hosts["all"]["children"]["zlh"]["children"]
    return directory, groups, runner._order(play, directory, reach)


def test_the_inventory_holds_the_one_host_strictly(settings: AnsibleSettings, tmp_path: Path) -> None:
    directory, groups, order = prepared(AnsibleRunner(settings), play(), {"ssh-ed25519": "AAAA"})
    host = groups["zlh_game"]["hosts"]["zlh-game-10001"]
    assert host["ansible_host"] == "127.20.0.11"
    assert host["ansible_ssh_private_key_file"] == str(tmp_path / "id_ed25519")
    assert "StrictHostKeyChecking=yes" in host["ansible_ssh_common_args"]
    assert f"UserKnownHostsFile={directory}/known_hosts" in host["ansible_ssh_common_args"]
    assert (directory / "known_hosts").read_text() == "127.20.0.11 ssh-ed25519 AAAA\n"
    assert order["limit"] == "zlh-game-10001"
    assert order["playbook"] == "playbooks/deploy_agent.yml"


def test_the_secret_is_in_0600_files_alone(settings: AnsibleSettings) -> None:
    directory, _, order = prepared(AnsibleRunner(settings), play(), None)
    assert directory.stat().st_mode & 0o777 == 0o700
    holders = {path.name for path in directory.rglob("*") if path.is_file() and "geheim-1234" in path.read_text()}
    assert holders == {"secrets.json", "hidden.json"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.rglob("*") if path.is_file())
    assert "geheim" not in json.dumps(order)
    assert order["env"]["ANSIBLE_NO_LOG"] == "1"
    assert "ANSIBLE_NO_LOG" not in prepared(AnsibleRunner(settings), play(secrets={}), None)[2]["env"]


def test_one_ssh_session_holds_the_targets_lock(settings: AnsibleSettings) -> None:
    argv = prepared(AnsibleRunner(settings), play(), {"ssh-ed25519": "AAAA"})[2]["lock"]
    assert argv[0] == "ssh"
    assert "root@127.20.0.11" in argv
    assert argv[-1].startswith("flock -w 30 /root/.zlh-play.lock ")
    assert "StrictHostKeyChecking=yes" in argv


@pytest.fixture
def node(settings: AnsibleSettings, tmp_path: Path) -> AnsibleSettings:
    (tmp_path / "nodes").write_text("[127.0.0.1]:2222 ssh-ed25519 BBBB\n")
    return settings.model_copy(update={"node_known_hosts": tmp_path / "nodes", "node_port": 2222})


def test_trust_goes_through_the_node(node: AnsibleSettings, tmp_path: Path) -> None:
    directory, groups, order = prepared(AnsibleRunner(node), play("bootstrap.yml"), {"ssh-ed25519": "AAAA"})
    host = groups["zlh_game"]["hosts"]["zlh-game-10001"]
    assert host["ansible_connection"] == "community.proxmox.proxmox_pct_remote"
    assert (host["ansible_host"], host["ansible_port"], host["ansible_user"]) == ("127.0.0.1", 2222, "zlh-node")
    assert (host["proxmox_vmid"], host["ansible_become"]) == (10001, False)
    assert host["ansible_ssh_private_key_file"] == str(tmp_path / "id_ed25519")
    assert order["env"]["HOME"] == str(directory / "home"), "the plugin reads ~/.ssh/known_hosts alone"
    assert (directory / "home" / ".ssh" / "known_hosts").read_text() == "[127.0.0.1]:2222 ssh-ed25519 BBBB\n"
    assert order["env"]["ANSIBLE_USE_PERSISTENT_CONNECTIONS"] == "1", "else an unknown key is a question that silence answers with yes"


def test_through_the_node_the_lock_is_held_inside_the_container(node: AnsibleSettings) -> None:
    directory, _, order = prepared(AnsibleRunner(node), play("bootstrap.yml"), None)
    assert order["lock"][-2:] == [
        "zlh-node@127.0.0.1",
        "sudo -n /usr/sbin/pct exec 10001 -- flock -w 30 /root/.zlh-play.lock sh -c 'echo locked; exec cat'",
    ]
    assert f"UserKnownHostsFile={directory}/home/.ssh/known_hosts" in order["lock"]
    assert "StrictHostKeyChecking=yes" in order["lock"]


def test_each_node_has_its_address(node: AnsibleSettings) -> None:
    several = node.model_copy(update={"node_addresses": ("pve1=10.0.0.2", "pve2=10.0.0.3")})
    _, groups, _ = prepared(AnsibleRunner(several, entrance="10.0.0.9"), play("bootstrap.yml"), None)
    assert groups["zlh_game"]["hosts"]["zlh-game-10001"]["ansible_host"] == "10.0.0.2"
    other = node.model_copy(update={"node_addresses": ("pve2=10.0.0.3",)})
    with pytest.raises(MisconfiguredSetting, match=r"ZLH_ANSIBLE__NODE_ADDRESSES.*does not name pve1"):
        prepared(AnsibleRunner(other), play("bootstrap.yml"), None)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"node_known_hosts": None}, "ZLH_ANSIBLE__NODE_KNOWN_HOSTS"),
        ({"node_known_hosts": Path("/nowhere/known_hosts")}, "ZLH_ANSIBLE__NODE_KNOWN_HOSTS"),
        ({"private_key": None}, "ZLH_ANSIBLE__PRIVATE_KEY"),
    ],
)
def test_a_node_that_cannot_be_known_is_not_asked(node: AnsibleSettings, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(MisconfiguredSetting, match=match):
        prepared(AnsibleRunner(node.model_copy(update=changes)), play("bootstrap.yml"), None)
    assert list(node.scratch_dir.iterdir()) == []


@pytest.mark.parametrize("name", ["../../evil.yml", "no_such.yml", "/etc/passwd", "deploy_agent.yml --limit all", ""])
async def test_only_the_projects_playbooks_run(settings: AnsibleSettings, name: str) -> None:
    with pytest.raises(BadInput, match="ZLH_ANSIBLE__PROJECT_DIR"):
        await AnsibleRunner(settings).run(play(name))


@pytest.mark.parametrize(
    "changes",
    [
        {"variables": {"name": "{{ lookup('pipe', 'id') }}"}},
        {"variables": {"list": [{"url": "{% raw %}"}]}},
        {"variables": {"{{ key }}": 1}},
        {"secrets": {"token": "{{ geheim }}"}},
    ],
)
async def test_values_that_ansible_would_execute_are_refused(settings: AnsibleSettings, changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="template") as caught:
        await AnsibleRunner(settings).run(play(**changes))
    assert "geheim" not in str(caught.value)


async def test_what_json_cannot_say_is_refused_and_leaves_nothing(settings: AnsibleSettings) -> None:
    with pytest.raises(BadInput, match="JSON"):
        await AnsibleRunner(settings).run(play(variables={"x": object()}))
    assert os.listdir(settings.scratch_dir) == []


async def test_a_missing_scratch_directory_names_its_setting(settings: AnsibleSettings, tmp_path: Path) -> None:
    wrong = settings.model_copy(update={"scratch_dir": tmp_path / "none"})
    with pytest.raises(MisconfiguredSetting, match="ZLH_ANSIBLE__SCRATCH_DIR"):
        await AnsibleRunner(wrong).run(play())


def test_leftovers_of_killed_supervisors_go(tmp_path: Path) -> None:
    old, young, other = tmp_path / "zlh-play-old", tmp_path / "zlh-play-young", tmp_path / "somebody-elses"
    for directory in (old, young, other):
        directory.mkdir()
        (directory / "secrets.json").write_text("{}")
    hour_ago = time.time() - 3600
    os.utime(old, (hour_ago, hour_ago))
    os.utime(other, (hour_ago, hour_ago))
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["somebody-elses", "zlh-play-young"]
