"""Inventories by plain ``ansible-playbook``: a mistyped variable ends a play by name before its first task."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PLAYBOOKS = {
    "bootstrap.yml": "base_authorised_key",
    "deploy_agent.yml": "zlh_agent_versoin",
    "preseed_fabric.yml": "fabric_server_eola",
    "dev_environment.yml": "dev_environment_runtime",
    "restart_agent.yml": "zlh_agent_versoin",
}


async def ansible(tool: str, *arguments: str) -> tuple[int, str]:
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": os.environ["HOME"], "LANG": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"}
    process = await asyncio.create_subprocess_exec(
        str(BIN / tool), *arguments, cwd=PROJECT, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


def test_every_playbook_is_tried() -> None:
    assert {path.name for path in (PROJECT / "playbooks").glob("*.yml")} == set(PLAYBOOKS) | {"lab.yml", "site.yml"}  # without roles of their own


@pytest.mark.parametrize(("playbook", "wrong"), PLAYBOOKS.items())
async def test_a_mistyped_variable_is_named_and_nothing_runs(tmp_path: Path, playbook: str, wrong: str) -> None:
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, wrong: "x", "zlh_vmidd": 7, "zlh_vmid": 7, "mine": 1}
    groups = {group: {"hosts": {"c1": host}} for group in ("zlh", "zlh_game", "zlh_dev")}
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"children": groups}}))
    status, said = await ansible("ansible-playbook", "-i", str(tmp_path / "hosts.json"), "--check", f"playbooks/{playbook}")
    assert status == 2, said
    assert f"unknown in the inventory or the extra variables: {wrong}, zlh_vmidd. Correct the name" in said
    assert "ok=0 " in said and "changed=0 " in said


@pytest.mark.parametrize(("inventory", "named"), [("lab", "var/up/zlh.env"), ("production", "HTTPSConnectionPool")])
async def test_an_inventory_without_an_answer_ends_the_play(tmp_path: Path, inventory: str, named: str) -> None:
    """Nobody must not look like everybody being fine."""
    status, said = await ansible("ansible-playbook", "-i", f"inventories/{inventory}", "playbooks/site.yml")
    assert status != 0 and named in said and "Completely failed to parse inventory source" in said, said


async def test_a_playbook_alone_asks_nobody() -> None:
    status, said = await ansible("ansible-playbook", "--syntax-check", "playbooks/site.yml")
    assert status == 0, said
