"""``ansible-playbook -i inventories/lab`` as a person types it, against a running lab of real containers: it converges, then changes nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.clients.ca import CertificateAuthority
from flows.domain.server import ContainerType, Server
from flows.lab import launch
from flows.settings import load
from flows.state import host_keys, migrate
from flows.state.database import Database
from tests.support.lxcfleet import PARTS, PROJECT, Fleet, running, until
from tests.unit.state.conftest import Make

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]
MASTER, FORWARDING = "m" * 40, "forwarding-0123456789"


@dataclass
class House:
    """A lab with a trusted game container, and the controller's settings for it."""

    fleet: Fleet
    env_file: Path
    server: Server

    def run(self, tool: str, *arguments: str, inventory: str = "lab") -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ZLH_")}
        environment |= {"LAB_ENV_FILE": str(self.env_file), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8", "COLUMNS": "200"}
        environment["ANSIBLE_SSH_CONTROL_PATH_DIR"] = str(self.env_file.parent / "cp")
        command = [str(Path(sys.executable).parent / tool), "-i", f"inventories/{inventory}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment, timeout=300, check=False)

    def keys(self, keys: dict[str, str]) -> None:
        async def put() -> None:
            database = Database(self.database)
            try:
                async with database.write() as tx:
                    await host_keys.put(tx, self.server.id, self.server.address, keys)
            finally:
                await database.close()

        asyncio.run(put())

    @property
    def database(self) -> str:
        return f"sqlite+aiosqlite:///{self.env_file.parent}/zlh.db"


async def made(url: str, address: str) -> Server:
    database = Database(url)
    try:
        async with database.write() as tx:
            return await Make().server(tx, vmid=10007, address=address, ctype=ContainerType.GAME, flavor="fabric", version="1.16.5", memory_mb=1024)
    finally:
        await database.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, machines_images: Path) -> Iterator[House]:
    home = tmp_path_factory.mktemp("house")
    with running(home / "lab", parts=[*PARTS, "artifacts"]) as fleet:
        url = f"sqlite+aiosqlite:///{home}/zlh.db"
        migrate.upgrade_sync(url)
        server = asyncio.run(made(url, fleet.address(10007)))
        own = {
            "ZLH_DATABASE__URL": url,
            "ZLH_AGENT__MASTER_SECRET": MASTER,
            "ZLH_AGENT__CA_DIR": str(home / "ca"),
            "ZLH_ANSIBLE__FORWARDING_SECRET": FORWARDING,
            "ZLH_ARTIFACTS__CACHE_FILE": str(home / "catalog.json"),
        }
        (home / "zlh.env").write_text("".join(f"{key}={value}\n" for key, value in (launch.env(fleet.state) | own).items()))
        CertificateAuthority(home / "ca").ensure()
        house = House(fleet, home / "zlh.env", server)
        container = fleet.container(10007)
        container.config.put(tags=f"zlh;game;zlh-srv-{server.id}")
        until(lambda: fleet.inside(10007, "systemctl is-active ssh || true") == "active")
        public = Path(f"{load({'ZLH_ENV_FILE': str(house.env_file)}).ansible.private_key}.pub").read_text().strip()
        fleet.inside(10007, f"mkdir -p -m 700 /root/.ssh && echo '{public}' > /root/.ssh/authorized_keys && ssh-keygen -A")
        house.keys({"ssh-ed25519": fleet.inside(10007, "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")})
        yield house


def test_the_agent_is_deployed_by_hand_and_the_second_run_changes_nothing(house: House) -> None:
    first = house.run("ansible-playbook", "playbooks/deploy_agent.yml")
    assert first.returncode == 0, first.stdout + first.stderr
    assert house.fleet.inside(10007, "systemctl is-active zlh-agent") == "active"
    second = house.run("ansible-playbook", "-vvv", "playbooks/deploy_agent.yml")
    said = second.stdout
    assert second.returncode == 0 and "changed=0 " in said, said
    token = house.fleet.inside(10007, "sed -n 's/^token = \"\\(.*\\)\"/\\1/p' /etc/zlh/agent.toml")
    assert len(token) == 43 and token not in said and "PRIVATE KEY" not in said and MASTER not in said


def test_the_whole_site_converges(house: House) -> None:
    first = house.run("ansible-playbook", "playbooks/site.yml")
    assert first.returncode == 0, first.stdout + first.stderr
    # Its own host key in place of the template's, which a flow would have written down.
    house.keys({"ssh-ed25519": house.fleet.inside(10007, "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")})
    second = house.run("ansible-playbook", "playbooks/site.yml")
    assert second.returncode == 0 and "changed=0 " in second.stdout, second.stdout
    assert FORWARDING not in first.stdout + second.stdout
    assert house.fleet.inside(10007, "stat -c %a /srv/game/config/FabricProxy-Lite.toml") == "600"


def test_groups_come_from_tags_and_the_address_from_the_configuration(house: House) -> None:
    # What the container itself says of its address is not asked.
    house.fleet.inside(10007, "ip addr add 10.99.99.99/32 dev eth0")
    said = house.run("ansible-inventory", "--graph", "zlh").stdout
    assert [line.strip(" |-") for line in said.splitlines()] == ["@zlh:", "@zlh_game:", "t10007", "t10007"]
    found = house.run("ansible-inventory", "--host", "t10007").stdout
    assert house.server.address in found and house.server.id in found and MASTER not in found


def test_another_host_key_than_the_databases_is_refused(house: House) -> None:
    good = house.fleet.inside(10007, "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")
    house.fleet.inside(10007, "rm -f /tmp/k*; ssh-keygen -q -t ed25519 -N '' -f /tmp/k")
    house.keys({"ssh-ed25519": house.fleet.inside(10007, "cut -d' ' -f2 /tmp/k.pub")})
    for socket in (house.env_file.parent / "cp").glob("*"):
        socket.unlink()  # else the connection of before goes on
    try:
        done = house.run("ansible-playbook", "playbooks/deploy_agent.yml")
        assert done.returncode == 4 and "unreachable=1" in done.stdout, done.stdout
    finally:
        house.keys({"ssh-ed25519": good})


def test_a_fleet_without_an_answer_is_no_empty_one(house: House) -> None:
    done = house.run("ansible-playbook", "playbooks/deploy_agent.yml", inventory="production")
    assert done.returncode != 0 and "Completely failed to parse inventory source" in done.stderr + done.stdout
