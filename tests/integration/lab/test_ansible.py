"""Content that nobody here wrote, unmodified against the face: community.proxmox's inventory and modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.lab import launch

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[launch.State]:
    directory = tmp_path_factory.mktemp("ansible") / "lab"
    yield launch.up(directory, overrides={"parts": ["proxmox"], "proxmox": {"timings": {"clone_s": 0.1, "start_s": 0.05, "stop_s": 0.05}}})
    launch.down(directory)


@pytest.fixture(scope="module")
def ansible(lab: launch.State, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a command of Ansible's with the face's CA."""
    home = tmp_path_factory.mktemp("home")
    environ = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
        "REQUESTS_CA_BUNDLE": lab.endpoints["proxmox"]["ca_file"],
        "ANSIBLE_LOCALHOST_WARNING": "False",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
        "LC_ALL": "C.UTF-8",
    }

    def go(*argv: str) -> str:
        done = subprocess.run([str(BIN / argv[0]), *argv[1:]], env=environ, cwd=home, capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return go


def play(lab: launch.State, *tasks: tuple[str, dict[str, Any], str]) -> str:
    """A playbook of module calls, each with what must hold of its ``result``. YAML is a superset of JSON."""
    host, _, port = lab.endpoints["proxmox"]["address"].partition(":")
    token = lab.config["proxmox"]["tokens"][0]
    access = {
        "api_host": host,
        "api_port": int(port),
        "api_user": token["user"],
        "api_token_id": token["name"],
        "api_token_secret": token["secret"],
        "validate_certs": True,
    }
    steps = [
        {"name": f"{name} {number}", f"community.proxmox.{name}": {**access, **given}, "register": "result", "failed_when": f"not ({holds})"}
        for number, (name, given, holds) in enumerate(tasks)
    ]
    variables = {"ansible_python_interpreter": sys.executable, "ansible_connection": "local"}
    return json.dumps([{"hosts": "localhost", "gather_facts": False, "vars": variables, "tasks": steps}])


@pytest.mark.timeout(180)
def test_modules_and_inventory(lab: launch.State, ansible: Callable[..., str], tmp_path: Path) -> None:
    ours = {"node": "pve1", "vmid": 10100, "hostname": "by-ansible"}
    address = "name=eth0,bridge=vmbr0,ip=127.20.7.7/16,gw=127.20.0.1"
    book = tmp_path / "make.yml"
    book.write_text(
        play(
            lab,
            ("proxmox", {**ours, "clone": 9000, "clone_type": "full", "storage": "local-lvm", "timeout": 20}, "result is changed"),
            ("proxmox", {**ours, "cores": 2, "tags": ["zlh", "game"], "netif": {"net0": address}, "update": True}, "result is changed"),
            ("proxmox", {"vmid": 10100, "state": "started"}, "result is changed"),
            ("proxmox", {"vmid": 10100, "state": "started"}, "result is not changed"),
            ("proxmox_snap", {"vmid": 10100, "snapname": "first", "state": "present", "timeout": 20}, "result is changed"),
            ("proxmox_vm_info", {"vmid": 10100, "config": "current"}, "result.proxmox_vms[0].config.tags == 'game;zlh'"),
            ("proxmox", {**ours, "vmid": 10101, "clone": 9000, "clone_type": "full", "storage": "local-lvm", "timeout": 20}, "result is changed"),
            ("proxmox", {"vmid": 10101, "state": "absent"}, "result is changed"),
        )
    )
    ansible("ansible-playbook", str(book))

    token = lab.config["proxmox"]["tokens"][0]
    source = tmp_path / "fleet.proxmox.yml"
    source.write_text(
        json.dumps(
            {
                "plugin": "community.proxmox.proxmox",
                "url": lab.endpoints["proxmox"]["url"],
                "user": token["user"],
                "token_id": token["name"],
                "token_secret": token["secret"],
                "validate_certs": True,
                "want_facts": True,
                "want_proxmox_nodes_ansible_host": True,
                "keyed_groups": [{"key": "proxmox_tags_parsed", "prefix": "tag", "separator": "_"}],
            }
        )
    )
    listed = ansible("ansible-inventory", "-i", str(source), "--list")
    inventory = json.loads(listed, object_hook=lambda o: o.get("__ansible_unsafe", o))
    facts = inventory["_meta"]["hostvars"]["by-ansible"]
    assert facts["proxmox_vmid"] == 10100 and facts["proxmox_status"] == "running" and facts["proxmox_snapshots"] == ["first"]
    assert [i.get("inet") for i in facts["proxmox_lxc_interfaces"]] == ["127.0.0.1/8", "127.20.7.7/16"]
    assert facts["proxmox_net0"]["ip"] == "127.20.7.7/16" and facts["proxmox_cores"] == 2
    assert facts["proxmox_tags_parsed"] == ["game", "zlh"]
    assert inventory["tag_zlh"]["hosts"] == inventory["proxmox_all_running"]["hosts"] == ["by-ansible"]
    assert set(inventory["proxmox_nodes"]["hosts"]) == {"pve1", "pve2"}
    assert inventory["_meta"]["hostvars"]["pve1"]["ansible_host"] == "127.0.0.1"
