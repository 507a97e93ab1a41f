"""A small lab configuration and world; every port is chosen by the system."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flows.lab.config import LabConfig
from flows.lab.faults import Faults
from flows.lab.world import LabAgent, LabContainer, LabNode, World

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="


@pytest.fixture
def lab_config(tmp_path: Path) -> Callable[..., LabConfig]:
    """``lab_config(section={field: value})``: a valid configuration with some fields of its own."""

    def make(**sections: dict[str, Any]) -> LabConfig:
        tree: dict[str, Any] = {
            "state_file": tmp_path / "lab.json",
            "control": {"token": "control-token"},
            "proxmox": {"ca_dir": tmp_path / "ca"},
            "agents": {"port": 0, "start_s": 0.05, "stop_s": 0.05, "crash_restart_s": 0.05},
            "bridge": {"token": "bridge-token"},
            "dns": {"tsig_secret": SECRET},
            "runner": {"project_dir": tmp_path / "project", "task_s": 0.0},
        }
        for name, fields in sections.items():
            tree[name] = {**tree.get(name, {}), **fields}
        return LabConfig.model_validate(tree)

    return make


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def world() -> World:
    """One node and one running container, 10001, without an agent."""
    world = World()
    world.nodes["pve1"] = LabNode("pve1")
    world.containers[10001] = LabContainer(
        10001, "pve1", status="running", config={"net0": "name=eth0,bridge=vmbr0,ip=127.20.9.1/16", "memory": 2048}, started_at=1.0
    )
    return world


@pytest.fixture
def game_agent() -> LabAgent:
    return LabAgent(server_id="srv-1", version="0.1.0", token="agent-token", prepared=True)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """``await eventually(condition)``: polls until it holds, fails after some seconds."""

    async def wait(condition: Callable[[], Any], deadline_s: float = 5.0) -> None:
        end = time.monotonic() + deadline_s
        while True:
            result = condition()
            if hasattr(result, "__await__"):
                result = await result
            if result:
                return
            assert time.monotonic() < end, "never happened"
            await asyncio.sleep(0.01)

    return wait
