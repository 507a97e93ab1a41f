"""Programs that nobody here wrote, unmodified, against real containers over TLS: Ansible's collection, its connection by the node, and
command lines for Proxmox. What Ansible's inventory and modules need of the face is also tested without root, in tests/integration/lab."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.lab.config import DEFAULT_RIGHTS
from tests.support.lxcfleet import Fleet, running, until
from tests.support.machines import leftovers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, machines_images: Path) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("peers") / "lab"
    # The backup module looks for Datastore.AllocateSpace on exactly /storage/local, or on /: where it was granted by an entry of its own.
    rights = {**DEFAULT_RIGHTS, "/storage/local": DEFAULT_RIGHTS["/storage"]}
    token = {"user": "zlh@pve", "name": "autopilot", "secret": secrets.token_hex(16), "rights": rights}
    with running(directory, proxmox={"tokens": [token]}) as fleet:
        yield fleet
    assert leftovers(directory) == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def ansible(fleet: Fleet, home: Path, *argv: str) -> str:
    node = fleet.state.endpoints["node"]
    (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
    (home / ".ssh" / "known_hosts").write_text(Path(node["known_hosts"]).read_text())
    environ = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
        "REQUESTS_CA_BUNDLE": fleet.state.endpoints["proxmox"]["ca_file"],
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
        "ANSIBLE_USE_PERSISTENT_CONNECTIONS": "1",  # else the plugin asks about unknown keys, and takes silence for a yes
        "ANSIBLE_PARAMIKO_LOOK_FOR_KEYS": "0",
        "SSH_AUTH_SOCK": "",
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run([str(BIN / argv[0]), *argv[1:]], env=environ, cwd=home, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def access(fleet: Fleet) -> dict[str, Any]:
    host, _, port = fleet.state.endpoints["proxmox"]["address"].partition(":")
    token = fleet.state.config["proxmox"]["tokens"][0]
    return {
        "api_host": host,
        "api_port": int(port),
        "api_user": token["user"],
        "api_token_id": token["name"],
        "api_token_secret": token["secret"],
        "validate_certs": True,
    }


def test_modules_then_a_play_through_the_node(fleet: Fleet, home: Path, tmp_path: Path) -> None:
    """From nothing to a configured container, by content of the collection alone."""
    ours = {"node": "pve1", "vmid": 10100, "hostname": "by-ansible"}
    net = f"name=eth0,bridge=vmbr0,ip={fleet.address(10100)}/24,gw={fleet.network}.1"
    dump = {"mode": "include", "vmids": [10100], "storage": "local", "compress": "zstd", "wait": True, "wait_timeout": 100}
    tasks: list[tuple[str, dict[str, Any], str]] = [
        ("proxmox", {**ours, "clone": 9000, "clone_type": "full", "storage": "local-lvm", "timeout": 60}, "result is changed"),
        ("proxmox", {**ours, "memory": 384, "tags": ["zlh"], "netif": {"net0": net}, "update": True}, "result is changed"),
        ("proxmox", {"vmid": 10100, "state": "started", "timeout": 60}, "result is changed"),
        ("proxmox_snap", {"vmid": 10100, "snapname": "first", "state": "present", "timeout": 60}, "result is changed"),
        ("proxmox_backup", dump, "result is changed and result.backups[0].status == 'success'"),
        (
            "proxmox_storage_contents_info",
            {"node": "pve1", "storage": "local", "content": "backup", "vmid": 10100},
            "result.proxmox_storage_content | length == 1",
        ),
        ("proxmox_vm_info", {"vmid": 10100}, "result.proxmox_vms[0].status == 'running'"),
        ("proxmox_tasks_info", {"node": "pve1"}, "result.proxmox_tasks | selectattr('type', 'eq', 'vzdump') | list | length == 1"),
        ("proxmox_node_info", {}, "result.proxmox_nodes | length == 2"),
    ]
    made = [
        {"name": f"{name} {n}", f"community.proxmox.{name}": {**access(fleet), **given}, "register": "result", "failed_when": f"not ({holds})"}
        for n, (name, given, holds) in enumerate(tasks)
    ]
    node = fleet.state.endpoints["node"]
    target = {
        "ansible_connection": "community.proxmox.proxmox_pct_remote",
        "ansible_host": "127.0.0.1",
        "ansible_port": int(node["port"]),
        "ansible_user": node["user"],
        "ansible_ssh_private_key_file": node["private_key"],
        "ansible_remote_tmp": "/root/.ansible/tmp",
        "proxmox_vmid": 10100,
    }
    inside = [
        {"name": "a raw command", "ansible.builtin.raw": "hostname", "register": "raw", "failed_when": "raw.stdout | trim != 'by-ansible'"},
        {"name": "facts", "ansible.builtin.setup": {"gather_subset": ["min"]}},
        {"name": "a file up", "ansible.builtin.copy": {"content": "x" * 300_000, "dest": "/root/big", "mode": "0640"}},
        {"name": "a file down", "ansible.builtin.fetch": {"src": "/root/big", "dest": f"{tmp_path}/", "flat": True}},
        {"name": "a unit", "ansible.builtin.systemd_service": {"name": "ssh", "state": "started"}},
        {
            "name": "the host",
            "ansible.builtin.assert": {"that": ["ansible_facts.hostname == 'by-ansible'", "ansible_facts.distribution == 'Debian'"]},
        },
    ]
    local = {"ansible_python_interpreter": sys.executable, "ansible_connection": "local"}
    book = tmp_path / "book.yml"
    book.write_text(
        json.dumps(
            [
                {"hosts": "localhost", "gather_facts": False, "vars": local, "tasks": made},
                {"hosts": "target", "gather_facts": False, "vars": target, "tasks": inside},
            ]
        )
    )
    ansible(fleet, home, "ansible-playbook", "-i", "target,", str(book))
    assert (tmp_path / "big").read_text() == "x" * 300_000
    assert fleet.inside(10100, "stat -c '%a %s' /root/big") == "640 300000"

    source = tmp_path / "fleet.proxmox.yml"
    token = fleet.state.config["proxmox"]["tokens"][0]
    plugin = {"plugin": "community.proxmox.proxmox", "url": fleet.state.endpoints["proxmox"]["url"], "user": token["user"]}
    plugin |= {"token_id": token["name"], "token_secret": token["secret"], "validate_certs": True, "want_facts": True}
    source.write_text(json.dumps(plugin))
    listed = ansible(fleet, home, "ansible-inventory", "-i", str(source), "--list")
    facts = json.loads(listed, object_hook=lambda o: o.get("__ansible_unsafe", o))["_meta"]["hostvars"]["by-ansible"]
    assert facts["proxmox_status"] == "running" and facts["proxmox_snapshots"] == ["first"]
    assert facts["proxmox_lxc_interfaces"][1]["inet"] == f"{fleet.address(10100)}/24"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment with other people's command lines, by their locked hashes."""
    place = tmp_path_factory.mktemp("commands")
    subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=120)
    pip = [place / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary", ":all:"]
    subprocess.run([*pip, "-r", Path(__file__).with_name("peers.txt")], check=True, timeout=300, capture_output=True)
    return place / "bin"


def run(fleet: Fleet, home: Path, *argv: str | Path) -> Any:
    ca = fleet.state.endpoints["proxmox"]["ca_file"]
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "SSL_CERT_FILE": ca, "REQUESTS_CA_BUNDLE": ca, "LC_ALL": "C.UTF-8"}
    done = subprocess.run([*map(str, argv)], env=environ, cwd=home, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_proxcli_runs_a_container_from_its_creation_to_its_end(fleet: Fleet, home: Path, commands: Path) -> None:
    token = fleet.state.config["proxmox"]["tokens"][0]
    secret = f"{token['user']}!{token['name']}={token['secret']}"

    def cli(*words: str) -> Any:
        return run(fleet, home, commands / "proxcli", "--url", fleet.state.endpoints["proxmox"]["url"], "--api-token", secret, *words)

    net = f"name=eth0,bridge=vmbr0,ip={fleet.address(10110)}/24,gw={fleet.network}.1"
    archive = "local:vztmpl/debian-13-standard_13.1-2_amd64.tar.zst"
    create = ["--node", "pve1", "--vmid", "10110", "--ostemplate", archive, "--storage", "local-lvm", "--memory", "256", "--net", net, "--tag", "web"]
    assert fleet.done(cli("container", "create", *create)) == "OK"
    assert fleet.done(cli("container", "start", "10110", "--node", "pve1")) == "OK"
    shown = cli("container", "show", "10110", "--node", "pve1")
    assert (shown["status"], shown["tags"]) == ("running", "web")
    assert [i["ip"] for i in cli("container", "ip", "10110")] == [fleet.address(10110)]
    upid = cli("backup", "create", "--node", "pve1", "--vmid", "10110", "--storage", "local", "--compress", "zstd")
    assert fleet.done(upid) == "OK"
    backups = [b for b in cli("backup", "list", "--node", "pve1", "--storage", "local") if b["vmid"] == 10110]
    assert len(backups) == 1 and backups[0]["size"] > 10_000_000
    assert any(t["upid"] == upid and t["status"] == "OK" for t in cli("task", "list"))
    assert cli("cluster", "status")[0]["quorate"] == 1 and len(cli("node", "list")) == 2
    assert fleet.done(cli("container", "stop", "10110", "--node", "pve1")) == "OK"
    assert fleet.done(cli("container", "delete", "10110", "--node", "pve1")) == "OK"
    until(lambda: not any(c["vmid"] == 10110 for c in cli("container", "list")))


def test_proxmox_cli_with_a_password(fleet: Fleet, home: Path, commands: Path) -> None:
    user = fleet.state.config["proxmox"]["users"][0]
    login = ["-h", fleet.state.endpoints["proxmox"]["address"], "-u", user.get("user", "root@pam"), "-p", user["password"], "--verify-ssl"]
    assert {c["vmid"] for c in run(fleet, home, commands / "proxmox-cli", *login, "container", "list")} >= {9000, 9001, 9010, 9011}
    assert len(run(fleet, home, commands / "proxmox-cli", *login, "node", "list")) == 2
