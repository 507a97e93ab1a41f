"""Knot DNS as the lab's name server: our client's whole suite once more against it, and what only a process of its own has."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from flows.errors import AutomationError, BadInput
from flows.lab.config import DnsConfig
from flows.lab.dns import KnotPart
from flows.lab.dns.knot import clean
from flows.lab.faults import Faults
from flows.lab.part import Manipulable, Part, PartError, Restartable
from tests.unit.clients.test_dns import *  # noqa: F403 - the suite itself; `lab` below takes the place of the in-process server
from tests.unit.clients.test_dns import NAME, SECRET, WANTED, client_of

pytestmark = [pytest.mark.services]


@pytest.fixture
async def lab(tmp_path: Path, faults: Faults) -> AsyncIterator[KnotPart]:
    part = KnotPart(DnsConfig(tsig_secret=SecretStr(SECRET)), faults, tmp_path / "knot")
    await part.open()
    yield part
    await part.stop()
    assert running(tmp_path / "knot") == []


def running(directory: Path) -> list[int]:
    """Processes with the configuration in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(directory / "knot.conf").encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def records(part: KnotPart) -> set[tuple[str, str, str]]:
    return {(r["name"], r["rtype"], r["value"]) for r in part.inspect()["records"] if not r["name"].endswith("ns1.play.example")}


async def test_it_is_a_part_that_restarts_and_can_be_manipulated(lab: KnotPart) -> None:
    assert isinstance(lab, Part) and isinstance(lab, Restartable) and isinstance(lab, Manipulable)
    assert lab.endpoints["zone"] == "play.example"


async def test_records_can_be_dropped_corrupted_and_duplicated(lab: KnotPart) -> None:
    await client_of(lab).publish(NAME, WANTED, "srv-1", ())
    serial = lab.inspect()["serial"]
    assert (await lab.manipulate("replace", {"name": "alpha", "rtype": "A", "value": "192.0.2.66"}))["serial"] > serial
    await lab.manipulate("add", {"name": NAME, "rtype": "A", "value": ["192.0.2.67"]})
    assert {(NAME, "A", "192.0.2.66"), (NAME, "A", "192.0.2.67")} <= records(lab)
    await lab.manipulate("delete", {"name": NAME, "rtype": "A"})
    assert not [r for r in records(lab) if r[:2] == (NAME, "A")]
    with pytest.raises(PartError, match="no such record"):
        await lab.manipulate("delete", {"name": NAME})
    await lab.manipulate("delete", {"name": f"_zlh.{NAME}"})
    assert (await client_of(lab).zone()).owners == {}


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("burn", {"name": NAME}),
        ("add", {"name": NAME}),
        ("add", {"name": NAME, "rtype": "A", "value": "not an address"}),
        ("replace", {"name": NAME, "rtype": "NONSENSE", "value": "1"}),
        ("delete", {"name": "nobody"}),
    ],
)
async def test_bad_manipulations_are_refused(lab: KnotPart, op: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(PartError):
        await lab.manipulate(op, arguments)


async def test_every_update_is_listed_with_its_answer(lab: KnotPart) -> None:
    client = client_of(lab)
    await client.publish(NAME, WANTED, "srv-1", ())
    with pytest.raises(Exception, match="changed"):
        await client.publish(NAME, WANTED, "srv-1", ())
    first, second = lab.inspect()["updates"]
    assert (first["rcode"], second["rcode"]) == ("NOERROR", "NXRRSET") or second["rcode"] == "YXRRSET"
    assert first["signed"] and NAME in first["names"]


async def test_records_survive_a_restart_and_a_kill_on_the_same_port(lab: KnotPart, tmp_path: Path) -> None:
    client, endpoints = client_of(lab), dict(lab.endpoints)
    await client.publish(NAME, WANTED, "srv-1", ())
    await lab.restart()
    assert lab.endpoints == endpoints and (await client.zone()).owners == {NAME: "srv-1"}
    await client.withdraw(NAME, "srv-1", WANTED)
    (pid,) = running(tmp_path / "knot")
    os.kill(pid, signal.SIGKILL)
    await lab.restart()
    assert (await client.zone()).owners == {}


async def test_dead_it_is_unknown_and_not_empty(lab: KnotPart, tmp_path: Path) -> None:
    (pid,) = running(tmp_path / "knot")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(AutomationError):
        await client_of(lab).zone()
    assert "error" in lab.inspect() and lab.inspect()["serial"] is None
    with pytest.raises(PartError, match="does not answer"):
        await lab.manipulate("add", {"name": NAME, "rtype": "A", "value": "192.0.2.1"})


_LAB = """
import asyncio, sys
from pathlib import Path
from pydantic import SecretStr
from flows.lab.config import DnsConfig
from flows.lab.dns import KnotPart
from flows.lab.faults import Faults

async def main():
    part = KnotPart(DnsConfig(tsig_secret=SecretStr(sys.argv[2])), Faults(), Path(sys.argv[1]))
    await part.open()
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def start_lab(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _LAB, str(directory), SECRET]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


async def test_it_dies_with_the_lab(tmp_path: Path) -> None:
    lab = start_lab(tmp_path / "knot")
    try:
        assert lab.stdout is not None and await asyncio.to_thread(lab.stdout.readline) == "ready\n"
        assert len(running(tmp_path / "knot")) == 1
    finally:
        lab.send_signal(signal.SIGKILL)
        lab.communicate()
    async with asyncio.timeout(10):
        while running(tmp_path / "knot"):
            await asyncio.sleep(0.02)


async def test_one_that_was_left_over_is_ended_first(tmp_path: Path, faults: Faults) -> None:
    first = KnotPart(DnsConfig(tsig_secret=SecretStr(SECRET)), faults, tmp_path / "knot")
    await first.open()
    await first._relay.close()
    second = KnotPart(DnsConfig(tsig_secret=SecretStr(SECRET)), faults, tmp_path / "knot")
    try:
        await second.open()
        assert len(running(tmp_path / "knot")) == 1
        assert (await client_of(second).zone()).owners == {}
    finally:
        await second.stop()
        await first.stop()
    assert clean(tmp_path / "knot") == []


def check_secrets(pid: int) -> None:
    assert SECRET.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_its_secrets_are_in_no_argv_and_no_readable_file(lab: KnotPart, tmp_path: Path) -> None:
    (pid,) = running(tmp_path / "knot")
    check_secrets(pid)
    assert (tmp_path / "knot" / "knot.conf").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "knot").stat().st_mode & 0o077 == 0


async def test_a_missing_knot_names_its_remedy(tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, **_: None if name == "knotd" else f"/bin/{name}")
    with pytest.raises(AutomationError, match="apt-get install knot"):
        await KnotPart(DnsConfig(tsig_secret=SecretStr(SECRET)), faults, tmp_path / "knot").open()


async def test_a_bad_configuration_is_refused_without_the_secret(tmp_path: Path, faults: Faults) -> None:
    secret = base64.b64encode(secrets.token_bytes(32)).decode()
    for changes in ({"zone": "a..b"}, {"tsig_algorithm": "hmac-rot13"}, {"tsig_secret": SecretStr(secret[:-2])}):
        with pytest.raises(BadInput) as caught:
            KnotPart(DnsConfig(**({"tsig_secret": SecretStr(secret)} | changes)), faults, tmp_path / "knot")
        assert secret[:-2] not in str(caught.value)


async def test_a_wrong_zone_file_is_said_with_its_log(tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.lab.dns.knot.READY_S", 1.0)
    monkeypatch.setattr("flows.lab.dns.knot.TRIES", 1)
    part = KnotPart(DnsConfig(tsig_secret=SecretStr(SECRET)), faults, tmp_path / "knot")
    (tmp_path / "knot" / "storage").mkdir(parents=True)
    (tmp_path / "knot" / "storage" / "play.example.zone").write_text("what is this\n")
    with pytest.raises(AutomationError, match=r"play\.example"):
        await part.open()
    assert running(tmp_path / "knot") == []
