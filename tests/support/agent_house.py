"""A container with the agent in it, and the control plane's side of it. Used by the tests of the agent in ``tests/lab``."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from pydantic import SecretStr

from flows.clients.agent_token import agent_token
from flows.clients.agents import AgentClient
from flows.clients.ca import CertificateAuthority
from flows.domain.agent import AgentStatus, WorkloadState
from flows.domain.server import ContainerType, Edge, Server, ServerState
from flows.errors import AutomationError
from flows.settings import AgentSettings
from tests.support.box import PROJECT, Box

MASTER = SecretStr("a-master-secret-of-forty-characters-here")
ID = "srv-lab-agent"
FAKE = PROJECT / "tests" / "unit" / "agent" / "fake_game.py"
TEMPLATES = PROJECT / "roles" / "zlh_agent" / "templates"
SUPERVISION = {"backoff_s": [2, 2, 2], "poll_s": 0.1, "term_timeout_s": 2}
GAME_UNIT = """\
[Unit]
Requires=zlh-game.socket
After=zlh-game.socket
[Service]
User=nobody
WorkingDirectory=/srv/game
Sockets=zlh-game.socket
StandardInput=socket
StandardOutput=journal
StandardError=journal
ExecStart=/usr/bin/python3 /srv/game/fake_game.py 25565 /srv/game
ExecStop=+/bin/sh -c 'test -n "$MAINPID" || exit 0; echo stop > /run/zlh-game/console; while kill -0 $MAINPID 2>/dev/null; do sleep 0.2; done'
Restart=no
TimeoutStopSec=120
"""
SOCKET_UNIT = """\
[Socket]
ListenFIFO=/run/zlh-game/console
Service=zlh-game.service
SocketMode=0600
RemoveOnStop=yes
FlushPending=yes
[Install]
WantedBy=sockets.target
"""
GAME_TOML = """\
unit = "zlh-game.service"
console = "/run/zlh-game/console"
address = "127.0.0.1"
port = 25565
ready_timeout_s = 20
stop_timeout_s = 3
"""


@dataclass
class House:
    """The container with the agent in it, and the control plane's side of it."""

    box: Box
    built: Path
    ca: Path
    variables: dict[str, Any]

    def install(self) -> None:
        """As the role leaves it, without Ansible."""
        environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - TOML and units, no HTML
        environment.filters["to_json"] = json.dumps
        for template, path, mode in (
            ("agent.toml.j2", "/etc/zlh/agent.toml", "0600"),
            ("agent.nft.j2", "/etc/zlh/agent.nft", "0644"),
            ("zlh-agent.service.j2", "/etc/systemd/system/zlh-agent.service", "0644"),
        ):
            text = environment.from_string((TEMPLATES / template).read_text()).render(**self.variables, ansible_managed="a test")
            self.box.put(path, text.encode(), mode)
        self.box.put("/etc/zlh/agent.crt", self.variables["zlh_agent_tls_cert"].encode())
        self.box.put("/etc/zlh/agent.key", self.variables["zlh_agent_tls_key"].encode(), "0600")
        self.box.put("/opt/zlh/agent/releases/0.1.0/zlh-agent.pyz", self.built.read_bytes(), "0755")
        self.box.sh("ln -sfn releases/0.1.0 /opt/zlh/agent/current; systemctl daemon-reload; systemctl enable --now zlh-agent")

    def prepare(self) -> None:
        """As the role of a game leaves it, with a game of the tests."""
        self.box.put("/srv/game/fake_game.py", FAKE.read_bytes())
        self.box.put("/srv/game/server.jar", b"")
        self.box.put("/srv/game/eula.txt", b"eula=true\n")
        self.box.put("/etc/systemd/system/zlh-game.service", GAME_UNIT.encode())
        self.box.put("/etc/systemd/system/zlh-game.socket", SOCKET_UNIT.encode())
        self.box.sh("systemctl daemon-reload; systemctl enable --now zlh-game.socket")
        self.box.put("/etc/zlh/game.toml", GAME_TOML.encode(), "0600")

    def deploy(self, version: str, content: bytes, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
        url = self.box.offer(f"zlh-agent-{version}.pyz", content)
        variables = {**self.variables, "zlh_agent_version": version, "zlh_agent_url": url, "zlh_agent_sha256": hashlib.sha256(content).hexdigest()}
        done = self.box.play("deploy_agent.yml", {**variables, **more}, *arguments)
        for secret in (self.variables["zlh_agent_token"], self.variables["zlh_agent_tls_key"].splitlines()[1]):
            assert secret not in done.stdout + done.stderr, "a secret is in the play's output"
        return done

    @property
    def server(self) -> Server:
        return Server(
            id=ID, customer_id="c-1", ctype=ContainerType.GAME, name="agt", flavor="fabric", version="1.21.4", memory_mb=1024, cores=2, disk_gb=20,
            node="pve1", storage="local", bridge="vmbr0", template_vmid=9000, vmid=self.box.container.vmid, address=self.box.address,
            state=ServerState.ACTIVE, desired="running", desired_by="owner", edge=Edge.OPEN, token_version=1, created_at=0,
        )  # fmt: skip

    def ask(self, call: Callable[[AgentClient], Awaitable[Any]]) -> Any:
        """One call by the real client."""

        async def asked() -> Any:
            client = AgentClient(AgentSettings(ca_dir=self.ca, master_secret=MASTER))
            try:
                return await call(client)
            finally:
                await client.close()

        return asyncio.run(asked())

    def status(self) -> AgentStatus:
        found: AgentStatus = self.ask(lambda client: client.status(self.server))
        return found

    def order(self, action: str, token: int = 100) -> None:
        self.ask(lambda client: getattr(client, action)(self.server, token))

    def until(self, state: str, *, ready: bool | None = None, within_s: float = 30) -> AgentStatus:
        """Polls, over the agent's restarts."""
        ends, last = time.monotonic() + within_s, "nothing"
        while time.monotonic() < ends:
            try:
                found = self.status()
            except AutomationError as error:
                last = str(error)
            else:
                if found.state == WorkloadState(state) and found.operation is None and ready in (None, found.ready):
                    return found
                last = str(found)
            time.sleep(0.1)
        raise AssertionError(f"not {state} within {within_s} s but {last}")

    def kill(self) -> None:
        """-9, and no restart by systemd before somebody revives it."""
        self.box.sh(
            "mkdir -p /run/systemd/system/zlh-agent.service.d; printf '[Service]\\nRestart=no\\n' > /run/systemd/system/zlh-agent.service.d/t.conf"
        )
        self.box.sh("systemctl daemon-reload; systemctl kill -s KILL zlh-agent; while systemctl is-active -q zlh-agent; do sleep 0.05; done")

    def revive(self) -> None:
        self.box.sh("rm -f /run/systemd/system/zlh-agent.service.d/t.conf; systemctl daemon-reload; systemctl restart zlh-agent")

    def mode(self, words: str) -> None:
        self.box.put("/srv/game/mode", words.encode())

    @property
    def starts(self) -> int:
        return int(self.box.sh("wc -c < /srv/game/starts || echo 0"))

    def pid(self) -> str:
        return self.box.sh("systemctl show -P MainPID zlh-game")


@contextmanager
def opened(directory: Path) -> Iterator[House]:
    """A container and a built agent that is not yet in it."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "agent" / "build.py"), "--output", str(directory / "dist")], check=True, capture_output=True, text=True
    )
    box = Box(directory)
    try:
        box.open()
        authority = CertificateAuthority(directory / "ca")
        authority.ensure()
        certificate, key = authority.issue(ID, box.address)
        variables = {
            "zlh_agent_server_id": ID,
            "zlh_agent_bind": box.address,
            "zlh_agent_port": 18888,
            "zlh_agent_kind": "game",
            "zlh_agent_token": agent_token(MASTER, ID, 1).get_secret_value(),
            "zlh_agent_tls_cert": certificate,
            "zlh_agent_tls_key": key,
            "zlh_agent_control_addresses": [str(box.machines.address)],
            "zlh_agent_supervision": SUPERVISION,
            "zlh_agent_probe_s": 10,
        }
        yield House(box, Path(done.stdout.strip()), directory / "ca", variables)
    finally:
        box.close()
