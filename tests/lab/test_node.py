"""The node's side of ``pct``: plain SSH, what it lets pass, what it refuses, and that the machine is left as it was."""

from __future__ import annotations

import hashlib
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.lab import launch
from tests.support.lxcfleet import Fleet, processes_naming, processes_with, running, until
from tests.support.machines import leftovers

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
HOST_FILES = ("/etc/passwd", "/etc/shadow", "/etc/group", "/etc/sudoers", "/etc/pam.d/sudo", "/etc/hosts", "/var/log/wtmp", "/var/log/lastlog")


def fingerprints() -> dict[str, str]:
    found = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in HOST_FILES if Path(name).exists()}
    return found | {name: " ".join(sorted(os.listdir(name))) for name in ("/etc", "/etc/sudoers.d", "/usr/sbin", "/run/sshd") if Path(name).is_dir()}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, machines_images: Path) -> Iterator[Fleet]:
    directory, before, mounts = tmp_path_factory.mktemp("node") / "lab", fingerprints(), Path("/proc/self/mountinfo").read_text()
    with running(directory) as fleet:
        fleet.container(10001)
        yield fleet
        assert [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{directory}/node" in line] == [] or mounts == ""
    assert fingerprints() == before, "the machine's own files are as they were"
    assert leftovers(directory) == [] and processes_naming(f"{directory}/") == []


def test_commands_stream_and_end_with_their_own_status(fleet: Fleet) -> None:
    ended = fleet.ssh("sudo /usr/sbin/pct exec 10001 -- sh -c 'cat; echo oops >&2; exit 7'", stdin=b"in" * 500_000)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"in" * 500_000, b"oops\n")
    assert fleet.ssh("sudo /usr/sbin/pct exec 10001 -- sh -c 'kill -KILL $$'").returncode == 128 + 9
    assert fleet.ssh("sudo /usr/sbin/pct exec 10001 -- env").stdout.count(b"SUDO") == 0
    assert fleet.ssh("sudo /usr/sbin/pct exec 10001 -- id -u").stdout == b"0\n"
    assert fleet.ssh("sudo /usr/sbin/pct exec 10001 no-such-program").returncode == 127


def test_a_command_is_ended_with_its_pct_and_may_outlive_a_broken_connection(fleet: Fleet) -> None:
    argv = fleet.ssh_argv("exec sudo /usr/sbin/pct exec 10001 -- sh -c 'echo $$; exec cat'")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as talk:
        assert talk.stdout is not None and talk.stdin is not None
        pid = talk.stdout.readline().decode().strip()
        assert fleet.inside(10001, f"cat /proc/{pid}/comm") == "cat"
        talk.kill()
    until(lambda: fleet.ssh(f"sudo /usr/sbin/pct exec 10001 -- test -e /proc/{pid}").returncode != 0)
    with subprocess.Popen(fleet.ssh_argv("exec sudo /usr/sbin/pct exec 10001 -- sleep 4321"), stdin=subprocess.DEVNULL):
        until(lambda: fleet.ssh("sudo /usr/sbin/pct exec 10001 -- pgrep -f 'sleep 4321'").returncode == 0)
        for number in processes_with("pct.py", "4321"):
            os.kill(number, signal.SIGKILL)
        until(lambda: fleet.ssh("sudo /usr/sbin/pct exec 10001 -- pgrep -x sleep").returncode != 0)


def test_what_pct_shows(fleet: Fleet) -> None:
    assert fleet.ssh("sudo pct status 10001").stdout == b"status: running\n"
    listed = fleet.ssh("sudo pct list").stdout.decode().splitlines()
    assert listed[0].split() == ["VMID", "Status", "Lock", "Name"] and "10001      running                 t10001" in [
        line.rstrip() for line in listed
    ]
    assert not any("9010" in line for line in listed), "a node knows its own alone"
    config = fleet.ssh("sudo pct config 10001").stdout.decode()
    assert "hostname: t10001\n" in config and "tags: zlh\n" in config and "digest" not in config


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ("sudo pct", 255, "ERROR: no command specified"),
        ("sudo pct destroy 10001", 255, "ERROR: unknown command 'pct destroy'"),
        ("sudo pct exec 999 -- true", 2, "Configuration file 'nodes/pve1/lxc/999.conf' does not exist"),
        ("sudo pct exec 9010 -- true", 2, "Configuration file 'nodes/pve1/lxc/9010.conf' does not exist"),
        ("sudo pct exec 9000 -- true", 255, "container '9000' not running!"),
        ("sudo pct exec 10001 --", 255, "missing command"),
        ("sudo pct exec ../1 -- true", 255, "400 Parameter verification failed."),
        ("/usr/sbin/pct list", 255, "please run as root"),
        ("sudo -n id", 1, "password is required"),
        ("sudo -n /usr/bin/pct list", 1, "password is required"),
        ("cat /etc/shadow", 1, "Permission denied"),
        ("cat /run/zlh-lab/host_key", 1, "Permission denied"),
    ],
)
def test_refusals(fleet: Fleet, command: str, code: int, text: str) -> None:
    ended = fleet.ssh(command)
    assert (ended.returncode, text in ended.stderr.decode()) == (code, True), ended


def test_push(fleet: Fleet) -> None:
    assert fleet.ssh("echo pushed > ~/file; sudo pct push 10001 ~/file /root/pushed --perms 0640 --user 1 --group daemon").returncode == 0
    assert fleet.inside(10001, "cat /root/pushed; stat -c '%a %u %G' /root/pushed") == "pushed\n640 1 daemon"
    refused = fleet.ssh("sudo pct push 10001 /etc/shadow /root/shadow")
    assert refused.returncode == 255 and refused.stderr == b"failed to open /etc/shadow for reading\n"
    assert fleet.inside(10001, "ls /root/shadow 2>/dev/null || echo none") == "none"


def test_who_gets_in(fleet: Fleet, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
    assert b"Permission denied" in fleet.ssh("true", key=str(stranger)).stderr
    assert b"Permission denied" in fleet.ssh("true", user="root").stderr
    assert fleet.ssh("hostname").stdout == b"pve1\n" and fleet.ssh("hostname", address="127.0.0.2").stdout == b"pve2\n"
    node = fleet.state.endpoints["node"]
    forward = subprocess.run([*fleet.ssh_argv("true")[:-2], "-W", "127.0.0.1:22", f"{node['user']}@127.0.0.1"], capture_output=True, check=False)
    assert forward.returncode != 0, "no tunnels"


def test_a_node_whose_server_was_restarted(fleet: Fleet) -> None:
    with subprocess.Popen(fleet.ssh_argv("sudo pct exec 10001 -- sleep 2345"), stdin=subprocess.DEVNULL) as talk:
        until(lambda: fleet.ssh("sudo /usr/sbin/pct exec 10001 -- pgrep -x sleep").returncode == 0)
        launch.meddle(fleet.state.directory, "node", "restart")
        assert talk.wait(20) != 0
    assert fleet.ssh("hostname").stdout == b"pve1\n"
    until(lambda: fleet.ssh("sudo /usr/sbin/pct exec 10001 -- pgrep -x sleep").returncode != 0)


def test_many_at_once(fleet: Fleet) -> None:
    began = time.monotonic()
    talks = [
        subprocess.Popen(fleet.ssh_argv(f"sudo pct exec 10001 -- sh -c 'echo {n}'"), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        for n in range(20)
    ]
    answers = [talk.communicate(timeout=60)[0] for talk in talks]
    assert answers == [f"{n}\n".encode() for n in range(20)] and time.monotonic() - began < 60


class Person:
    """Somebody at a terminal."""

    def __init__(self, argv: list[str]) -> None:
        self._end, theirs = pty.openpty()
        self._process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.seen = b""

    def types(self, text: str) -> None:
        self.seen = b""
        os.write(self._end, text.encode())

    def reads(self, text: bytes) -> None:
        end = time.monotonic() + 20
        while text not in self.seen:
            ready, _, _ = select.select([self._end], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} never came: {self.seen!r}"
            self.seen += os.read(self._end, 4096)

    def leaves(self) -> None:
        os.close(self._end)
        self._process.kill()
        self._process.wait()


def test_a_person_at_a_terminal(fleet: Fleet) -> None:
    argv = fleet.ssh_argv("sudo pct exec 10001 -- bash -i; echo ended with $?")
    person = Person(["ssh", "-tt", *argv[2:]])
    try:
        person.reads(b"# ")
        person.types("echo sum=$((40+2)); tty\n")
        person.reads(b"sum=42")
        person.reads(b"/dev/pts/")
        person.types("sleep 1000\n")
        until(lambda: fleet.ssh("sudo /usr/sbin/pct exec 10001 -- pgrep -x sleep").returncode == 0)
        person.types("\x03")
        until(lambda: fleet.ssh("sudo /usr/sbin/pct exec 10001 -- pgrep -x sleep").returncode != 0)
        person.types("exit 5\n")
        person.reads(b"ended with 5")
    finally:
        person.leaves()
    assert processes_with("pct.py", "bash") == []
