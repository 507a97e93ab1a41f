"""A whole small world for tests: the real lab program, a real database, real clients; short times. No engine: a bare executor stands in."""

from __future__ import annotations

import atexit
import base64
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from flows.clients.ca import CertificateAuthority
from flows.decide.placement import place
from flows.domain.intake import Creation, Ranges
from flows.domain.node import Node
from flows.domain.server import ContainerType
from flows.lab import launch
from flows.settings import Settings, load
from flows.state import customers, intake, nodes
from flows.state.database import Database
from flows.state.migrate import upgrade

PROJECT = Path(__file__).resolve().parents[2]

#: A lease of six seconds: an orphan is seen soon, and every proportion of production is kept.
SHORT: Mapping[str, str] = {
    "ZLH_TIMING__SWEEP_S": "1",
    "ZLH_TIMING__HEARTBEAT_S": "0.5",
    "ZLH_TIMING__LEASE_S": "6",
    "ZLH_TIMING__CALL_S": "3",
    "ZLH_TIMING__MARGIN_S": "0.3",
    "ZLH_TIMING__EPOCH_S": "5",
    "ZLH_TIMING__EPOCH_RENEW_S": "1",
    "ZLH_TIMING__OBSERVE_S": "4",
    "ZLH_TIMING__SWEEP_LIMIT_S": "15",
    "ZLH_TIMING__UNSUBMITTED_S": "2",
    "ZLH_TIMING__READY_POLL_S": "0.05",
    "ZLH_TIMING__STEP_FACTOR": "0.05",
    "ZLH_PROXMOX__TIMEOUT_S": "3",
    "ZLH_PROXMOX__POLL_S": "0.05",
    "ZLH_AGENT__TIMEOUT_S": "1",
}


#: The lab at full speed.
FAST: Mapping[str, object] = {
    "proxmox": {"timings": {"clone_s": 0.2, "start_s": 0.05, "stop_s": 0.05, "shutdown_s": 0.05, "destroy_s": 0.05, "refuse_s": 0.05}},
    "agents": {"start_s": 0.1, "stop_s": 0.05},
    "runner": {"task_s": 0.02},
}


@dataclass
class World:
    """``env`` holds the ``ZLH_*`` variables that any process of the product needs to live in this world."""

    directory: Path
    env: dict[str, str]
    settings: Settings
    lab: launch.State
    customer_id: str

    def control(self, method: str, path: str, **json: object) -> object:
        """A call of the lab's control API."""
        answer = httpx.request(
            method,
            self.lab.control_url + path,
            json=json or None,
            headers={"Authorization": f"Bearer {self.lab.control_token}"},
            timeout=10,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def close(self) -> None:
        launch.down(self.directory / "lab")


def _in_memory(directory: Path) -> Path:
    """Where the database lies: a disk that others fill keeps each commit waiting for seconds, which is longer than a lease here. Processes are
    killed in these tests, the machine is not. Gone with this process; what a killed one left goes with the next."""
    memory = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
    if not memory.is_dir():
        return directory
    for left in memory.glob("zlh-test-*-*"):
        if not Path(f"/proc/{left.name.split('-')[2]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"zlh-test-{os.getpid()}-", dir=memory))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


async def make(directory: Path, *, lab: Mapping[str, object] | None = None, **overrides: str) -> World:
    """Starts the lab and prepares the database with one customer on plan ``pro``. ``lab``: more of the lab's configuration."""
    state = launch.up(directory / "lab", project_dir=PROJECT, overrides={**FAST, **(lab or {})})
    env = {
        "ZLH_DATABASE__URL": f"sqlite+aiosqlite:///{_in_memory(directory)}/zlh.db",
        "ZLH_AGENT__MASTER_SECRET": secrets.token_urlsafe(32),
        "ZLH_AGENT__CA_DIR": str(directory / "ca"),
        "ZLH_ANSIBLE__FORWARDING_SECRET": base64.urlsafe_b64encode(secrets.token_bytes(24)).decode(),
        "ZLH_ANSIBLE__PROJECT_DIR": str(PROJECT),
        "ZLH_ARTIFACTS__CACHE_FILE": str(directory / "catalog.json"),
        "ZLH_WATCHDOG__STATE_FILE": str(directory / "watchdog.json"),
        **launch.env(state),
        **SHORT,
        **overrides,
    }
    settings = load(env)
    CertificateAuthority(settings.agent.ca_dir).ensure()
    await upgrade(settings.database.url.get_secret_value())
    database = Database(settings.database.url.get_secret_value())
    try:
        async with database.write() as tx:
            for name, first in (("pve1", 9000), ("pve2", 9010)):
                templates = {"fabric": first, "dev": first + 1}
                await nodes.put(
                    tx,
                    Node(name=name, memory_mb=65_536, disk_gb=1_000, cores=16, storage="local-lvm", bridge="vmbr0", templates=templates, open=True),
                )
            customer = await customers.add(tx, "acme", "pro")
    finally:
        await database.close()
    return World(directory, env, settings, state, customer.id)


def process_env(world: World) -> dict[str, str]:
    """The environment of a child process in this world."""
    return {k: v for k, v in os.environ.items() if not k.startswith("ZLH_")} | world.env


async def order(world: World, database: Database, name: str, ctype: str = "game") -> tuple[str, str]:
    """Orders a server through the intake's transaction; operation id and server id."""
    game = ctype == "game"
    creation = Creation(
        customer_id=world.customer_id,
        actor="test",
        ctype=ContainerType(ctype),
        name=name,
        flavor="fabric" if game else "dev",
        version="1.21.4" if game else "1",
        memory_mb=1024,
        cores=1,
        disk_gb=8,
        nonce=f"nonce-{name}",
        body_hash=f"hash-{name}",
    )
    async with database.write() as tx:
        accepted = await intake.create(tx, creation, place=place, ranges=ranges(world.settings))
    return accepted.operation.id, accepted.server.id


def ranges(settings: Settings) -> Ranges:
    return Ranges(
        settings.vmid.first,
        settings.vmid.last,
        settings.network.pool,
        settings.network.first,
        settings.network.gateway,
        int(settings.timing.operation_s * 1000),
    )
