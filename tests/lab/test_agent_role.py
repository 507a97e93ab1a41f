"""The role zlh_agent by real Ansible over SSH, in a real container: converges, proves, goes back.

One container for the file, in order: what deploys comes first.
"""

from __future__ import annotations

import io
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import testinfra

from tests.support.agent_house import ID, House, opened

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


def release(path: Path, version: str) -> bytes:
    """The same agent under another version."""
    out = io.BytesIO(b"#!/usr/bin/python3\n")
    out.seek(0, io.SEEK_END)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "a") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename == "zlh_agent/__init__.py":
                content = content.replace(b'__version__ = "0.1.0"', f'__version__ = "{version}"'.encode())
            target.writestr(entry, content)
    return out.getvalue()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with opened(tmp_path_factory.mktemp("agt")) as house:
        yield house


def test_check_mode_works_on_a_new_container(house: House) -> None:
    done = house.deploy("0.1.0", house.built.read_bytes(), "--check")
    assert done.returncode == 0, done.stdout
    assert house.box.execute("test -e /opt/zlh || test -e /etc/zlh").code != 0


def test_a_first_release_that_does_not_answer_is_left_stopped(house: House) -> None:
    done = house.deploy("0.0.1", b"import sys\nsys.exit('no agent at all')\n", zlh_agent_probe_s=2)
    assert done.returncode != 0
    assert "no agent at all" in done.stdout, "the journal's tail"
    assert "the agent is stopped" in done.stdout
    assert house.box.execute("systemctl is-active zlh-agent").out.strip() in (b"inactive", b"failed")
    assert house.box.execute("systemctl is-enabled zlh-agent").out.strip() == b"disabled"


def test_a_release_is_deployed_and_the_second_run_changes_nothing(house: House) -> None:
    first = house.deploy("0.1.0", house.built.read_bytes())
    assert first.returncode == 0, first.stdout + first.stderr
    second = house.deploy("0.1.0", house.built.read_bytes())
    assert second.returncode == 0 and "changed=0" in second.stdout, second.stdout
    health = house.ask(lambda client: client.health(house.server))
    assert (health["version"], health["server_id"]) == ("0.1.0", ID)


def test_check_mode_works(house: House) -> None:
    done = house.deploy("0.1.0", house.built.read_bytes(), "--check")
    assert done.returncode == 0 and "changed=0" in done.stdout, done.stdout


def test_modes_and_owners(house: House) -> None:
    host = testinfra.get_host(f"ssh://root@{house.box.address}", ssh_config=str(house.box.ssh_config))
    for path, mode in (
        ("/etc/zlh", 0o700),
        ("/etc/zlh/agent.toml", 0o600),
        ("/etc/zlh/agent.key", 0o600),
        ("/etc/zlh/agent.crt", 0o644),
        ("/opt/zlh/agent/releases/0.1.0/zlh-agent.pyz", 0o755),
        ("/opt/zlh/agent/proven", 0o600),
        ("/var/lib/zlh-agent", 0o700),
        ("/etc/systemd/system/zlh-agent.service", 0o644),
    ):
        found = host.file(path)
        assert (found.user, found.group, found.mode) == ("root", "root", mode), path
    assert host.file("/opt/zlh/agent/current").linked_to == "/opt/zlh/agent/releases/0.1.0"
    service = host.service("zlh-agent")
    assert service.is_running and service.is_enabled
    assert host.socket(f"tcp://{house.box.address}:18888").is_listening
    assert host.process.get(comm="python3").user == "root"


def test_the_port_is_open_to_control_addresses_alone(house: House) -> None:
    with socket.create_connection((house.box.address, 18888), timeout=5):
        pass
    elsewhere = house.deploy("0.1.0", house.built.read_bytes(), zlh_agent_control_addresses=["192.0.2.1", "2001:db8::/32"])
    assert elsewhere.returncode == 0, elsewhere.stdout  # its own probe comes over loopback
    with pytest.raises(TimeoutError):
        socket.create_connection((house.box.address, 18888), timeout=1)


@pytest.mark.parametrize("why", [pytest.param("exits", marks=pytest.mark.soak), "wrong version"])
def test_a_broken_release_gives_way_to_the_one_before(house: House, why: str) -> None:
    if house.box.execute("test -e /opt/zlh/agent/proven").code != 0:  # run alone, without the tests above
        assert house.deploy("0.1.0", house.built.read_bytes()).returncode == 0
    content = b"import sys\nsys.exit('broken from birth')\n" if why == "exits" else house.built.read_bytes()
    done = house.deploy("0.2.0", content)
    assert done.returncode != 0
    assert "Release 0.1.0 is back and answers" in done.stdout, done.stdout
    assert ("broken from birth" if why == "exits" else "it says that it is version 0.1.0, not 0.2.0") in done.stdout
    assert house.ask(lambda client: client.health(house.server))["version"] == "0.1.0"
    assert house.box.sh("readlink /opt/zlh/agent/current") == "/opt/zlh/agent/releases/0.1.0"
    house.box.sh("systemctl is-active zlh-agent")
    with socket.create_connection((house.box.address, 18888), timeout=5):
        pass  # the port that the test before had closed is open again


def test_another_checksum_is_refused_before_anything_is_touched(house: House) -> None:
    before = house.box.sh("systemctl show -P MainPID zlh-agent; readlink /opt/zlh/agent/current")
    done = house.deploy("0.3.0", house.built.read_bytes(), zlh_agent_sha256="0" * 64)
    assert done.returncode != 0 and "checksum" in done.stdout.lower()
    assert house.box.sh("systemctl show -P MainPID zlh-agent; readlink /opt/zlh/agent/current") == before
    assert house.box.execute("test -e /opt/zlh/agent/releases/0.3.0/zlh-agent.pyz").code != 0


def test_a_play_killed_before_the_restart_is_finished_by_the_next(house: House) -> None:
    house.box.sh("rm /opt/zlh/agent/proven")
    before = house.box.sh("systemctl show -P MainPID zlh-agent")
    assert house.deploy("0.1.0", house.built.read_bytes()).returncode == 0
    assert house.box.sh("systemctl show -P MainPID zlh-agent") != before


def test_releases_follow_each_other_and_three_are_kept(house: House) -> None:
    for version in ("0.4.0", "0.5.0"):
        done = house.deploy(version, release(house.built, version))
        assert done.returncode == 0, done.stdout
    assert house.ask(lambda client: client.health(house.server))["version"] == "0.5.0"
    kept = house.box.sh("ls /opt/zlh/agent/releases").split()
    assert len(kept) == 3 and {"0.4.0", "0.5.0"} <= set(kept)
    assert house.box.sh("readlink /opt/zlh/agent/previous") == "/opt/zlh/agent/releases/0.4.0"
