"""Real containers: what they can do, and that nothing is lost or shared that should not be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import testinfra

from flows.lab.lxc import attach, names
from flows.lab.substance import SubstanceError
from flows.lab.world import LabContainer
from tests.support.machines import Lab, record

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]  # the first test builds the image, where there is none


def until(condition: Callable[[], bool], deadline_s: float = 15.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.05)


def answers(address: str | None, port: int = 22) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((str(address), port), timeout=1) as connection:
        return connection.recv(7) == b"SSH-2.0"
    return False


def echoes(address: str | None) -> bool:
    """ICMP echo, as ping sends it."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ping:
        ping.settimeout(2)
        ping.sendto(b"\x08\x00\xf7\xff" + bytes(4), (str(address), 0))
        with contextlib.suppress(TimeoutError):
            while True:
                packet, sender = ping.recvfrom(1024)
                if sender[0] == address and packet[20] == 0:
                    return True
    return False


def test_life(machines_lab: Lab) -> None:
    lab, machines = machines_lab, machines_lab.machines
    began = time.monotonic()
    container = lab.container(101, hostname="alpha.lab")
    assert lab.run(machines.running(container))
    until(lambda: answers(container.address))
    assert time.monotonic() - began < 10, "its boot takes seconds"
    assert echoes(container.address)
    assert lab.sh(container, "hostname") == "alpha.lab"
    assert lab.run(machines.shutdown(container, 30))
    assert not lab.run(machines.running(container))
    assert not answers(container.address)
    lab.run(machines.start(container))
    lab.run(machines.start(container))  # harmless twice
    until(lambda: answers(container.address))
    lab.run(machines.stop(container))
    lab.run(machines.stop(container))
    assert not lab.run(machines.running(container))
    lab.run(machines.start(container))
    until(lambda: answers(container.address))
    lab.run(machines.destroy(container))
    lab.run(machines.destroy(container))
    with pytest.raises(SubstanceError, match="CT 101 has no root file system"):
        lab.run(machines.start(container))
    heir = lab.container(115, net0=container.config["net0"])
    neighbours = subprocess.run(["ip", "neighbour", "show", "to", str(heir.address)], capture_output=True, text=True, check=True).stdout
    assert names.hardware_address(lab.directory, 101) not in neighbours, "nobody goes on looking for the first one's card"
    until(lambda: answers(heir.address))
    lab.run(machines.destroy(heir))


def test_base_image(machines_lab: Lab, tmp_path: Path) -> None:
    """Seen over SSH, with a key that only this container trusts."""
    lab = machines_lab
    container = lab.container(102)
    key, known = tmp_path / "key", tmp_path / "known"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    lab.sh(container, "umask 077; mkdir -p /root/.ssh; cat > /root/.ssh/authorized_keys", stdin=key.with_suffix(".pub").read_bytes())
    until(lambda: answers(container.address))
    known.write_text(f"{container.address} {lab.sh(container, 'cat /etc/ssh/ssh_host_ed25519_key.pub')}\n")
    options = f"-o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes -o BatchMode=yes -o IdentitiesOnly=yes"
    refused = subprocess.run(["ssh", *options.split(), "-o", "IdentityFile=/dev/null", f"root@{container.address}", "true"], capture_output=True)
    assert refused.returncode == 255, "nobody enters without the key"

    host = testinfra.get_host(f"ssh://root@{container.address}", ssh_identity_file=str(key), ssh_extra_args=options)
    assert host.system_info.codename == "bookworm"
    packages = "python3-apt nftables zstd restic sudo ca-certificates nodejs unattended-upgrades"
    assert host.check_output(f"dpkg-query -W -f '${{db:Status-Abbrev}}' {packages}").split() == ["ii"] * 8
    assert host.service("ssh").is_enabled
    assert not host.service("apt-daily.timer").is_running
    assert not host.service("unattended-upgrades").is_running
    until(lambda: host.run("systemctl is-system-running").stdout.strip() in ("running", "degraded"))
    assert host.run("systemctl --failed --no-legend").stdout == ""
    assert host.run("apt-get update").rc == 0  # nothing to fetch, and no error either
    assert host.file("/usr/bin/java").mode == 0o755
    assert host.run("ls /etc/ssh/ssh_host_*_key").stdout.split() == ["/etc/ssh/ssh_host_ed25519_key"]
    host.run("printf 'console.log(process.argv.slice(2).join(\" \"), process.execArgv.join())' > /root/server.jar")
    assert host.check_output("/usr/bin/java -Xms128M -Xmx1G -jar /root/server.jar nogui") == "nogui --max-old-space-size=1024"
    assert host.run("/usr/bin/java -jar /root/none.jar").rc == 1
    assert f"default via {lab.network[1]} " in host.check_output("ip -4 route")
    assert Path(f"/proc/sys/net/ipv4/conf/{lab.machines.bridge}/forwarding").read_text() == "0\n", "no way out, whatever the host forwards"


def test_two_clones_share_no_identity(machines_lab: Lab) -> None:
    lab = machines_lab
    both = [lab.container(103), lab.container(104)]
    for container in both:
        until(lambda: answers(container.address))  # noqa: B023 - called in this very turn
    for file in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"):
        one, other = (lab.sh(container, f"cat {file}") for container in both)
        assert one and one != other, file


def test_snapshot_and_rollback(machines_lab: Lab) -> None:
    lab, machines = machines_lab, machines_lab.machines
    container = lab.container(105)
    lab.sh(container, "mkdir -p /srv/game && echo first > /srv/game/world && rm /etc/motd && chown 1234:5678 /srv/game/world")
    lab.run(machines.snapshot(container, "before"))  # of a running one
    lab.sh(container, "echo second > /srv/game/world; touch /srv/game/new; echo new > /etc/motd; rm -rf /usr/lib/node_modules /etc/apt")
    with pytest.raises(SubstanceError, match="running"):
        lab.run(machines.rollback(container, "before"))
    with pytest.raises(SubstanceError, match="already exists"):
        lab.run(machines.snapshot(container, "before"))
    lab.run(machines.stop(container))
    lab.run(machines.rollback(container, "before"))
    lab.run(machines.start(container))
    assert lab.sh(container, "cat /srv/game/world; ls /srv/game; stat -c %u:%g /srv/game/world; ls /etc/motd || ls -d /etc/apt") == (
        "first\nworld\n1234:5678\n/etc/apt"
    )
    lab.sh(container, "echo third > /srv/game/world")
    lab.run(machines.stop(container))
    lab.run(machines.rollback(container, "before"))  # a snapshot can be returned to as often as one likes
    lab.run(machines.drop_snapshot(container, "before"))
    lab.run(machines.start(container))
    assert lab.sh(container, "cat /srv/game/world") == "first"
    lab.run(machines.stop(container))
    for name in ("before", "../machines", ""):
        with pytest.raises(SubstanceError, match="snapshot"):
            lab.run(machines.rollback(container, name))


def test_clones_live_alone(machines_lab: Lab) -> None:
    lab, machines = machines_lab, machines_lab.machines
    source = lab.container(106)
    lab.sh(source, "echo old > /srv/data")
    lab.run(machines.snapshot(source, "old"))
    pair = "while :; do echo x >> /srv/first/n; echo x >> /srv/last/n; echo x >> /srv/busy; done"
    lab.sh(source, "echo new > /srv/data; mkdir -p /srv/first /srv/bulk /srv/last; head -c 40M /dev/urandom | split -b 20k -a 4 - /srv/bulk/")
    lab.sh(source, f"({pair}) > /dev/null 2>&1 &")
    copy, past = lab.container(107, start=False), lab.container(108, start=False)
    for container in (copy, past):
        lab.run(machines.destroy(container))
    lab.run(machines.clone(source, copy))
    lab.run(machines.clone(source, past, "old"))
    with pytest.raises(SubstanceError, match="CT 107 already exists"):
        lab.run(machines.clone(source, copy))
    assert lab.run(machines.running(source))
    size = int(lab.sh(source, "stat -c %s /srv/busy"))
    until(lambda: int(lab.sh(source, "stat -c %s /srv/busy")) > size)  # it was frozen for the copy, and goes on
    for container in (copy, past):
        lab.run(machines.start(container))
    first, last = (int(lab.sh(copy, f"wc -l < /srv/{name}/n")) for name in ("first", "last"))
    assert first - last in (0, 1), "the copy is of one moment"
    lab.sh(copy, "echo mine > /srv/data")
    assert lab.sh(source, "cat /srv/data") == "new"
    lab.run(machines.destroy(source))
    assert lab.sh(copy, "cat /srv/data; hostname") == "mine\nct107"
    assert lab.sh(past, "cat /srv/data; hostname; ls /srv/busy", code=2) == "old\nct108"


def test_backup_and_restore(machines_lab: Lab, tmp_path: Path) -> None:
    lab, machines = machines_lab, machines_lab.machines
    source, target = lab.container(109), lab.container(110)
    archive = tmp_path / "vzdump-lxc-109.tar.zst"
    said: list[str] = []
    lab.sh(source, "echo world > /srv/world; chown 1234:5678 /srv/world; chmod 4711 /srv/world; rm /etc/motd; ln /srv/world /srv/twin")
    lab.sh(source, 'cp /bin/true /srv/able; python3 -c \'import os; os.setxattr("/srv/able", "user.note", b"kept")\'')
    lab.run(machines.backup(source, archive, said.append))
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]
    assert any("archive" in line for line in said)
    assert lab.run(machines.configuration(archive)) == json.loads(json.dumps(source.config))
    listing = subprocess.run(["tar", "-t", "-I", "zstd", "-f", str(archive)], capture_output=True, text=True, check=True).stdout
    assert "./usr/bin/node\n" in listing, "the whole root, the image's part included"
    lab.run(machines.snapshot(target, "gone"))
    with pytest.raises(SubstanceError, match="running"):
        lab.run(machines.restore(target, archive, said.append))
    lab.run(machines.stop(target))

    broken = tmp_path / "broken.tar.zst"
    broken.write_bytes(archive.read_bytes()[: archive.stat().st_size // 10])
    for bad in (broken, tmp_path / "none.tar.zst"):
        with pytest.raises(SubstanceError, match=r"restore|no backup"):
            lab.run(machines.restore(target, bad, said.append))
    lab.run(machines.restore(target, archive, said.append))
    lab.run(machines.destroy(source))
    lab.run(machines.start(target))
    assert lab.sh(target, "cat /srv/world; stat -c '%u:%g %a %h' /srv/world; ls /etc/vzdump/lab.json /etc/motd; hostname", code=0) == (
        "world\n1234:5678 4711 2\nct110"
    )
    assert lab.sh(target, 'python3 -c \'import os; print(os.getxattr("/srv/able", "user.note").decode())\'') == "kept"
    until(lambda: answers(target.address))
    lab.run(machines.stop(target))
    with pytest.raises(SubstanceError, match="snapshot 'gone' does not exist"):
        lab.run(machines.rollback(target, "gone"))


def test_limits_change_while_it_runs(machines_lab: Lab) -> None:
    lab, machines = machines_lab, machines_lab.machines
    container = lab.container(111, memory=200, cores=1)
    memory = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"
    assert int(lab.sh(container, memory)) == 200 << 20
    container.config |= {"memory": 96, "cores": 2, "hostname": "later"}
    lab.run(machines.configure(container))
    assert int(lab.sh(container, memory)) == 96 << 20
    assert lab.sh(container, "hostname") == "ct111"
    hungry = "python3 -c 'b = bytearray(150 << 20)'"
    assert lab.sh(container, hungry, code=137) == ""  # by the kernel
    container.config["memory"] = 400
    lab.run(machines.configure(container))
    assert lab.sh(container, hungry) == ""
    lab.run(machines.stop(container))
    lab.run(machines.start(container))
    assert lab.sh(container, "hostname") == "later"
    assert int(lab.sh(container, memory)) == 400 << 20
    container.config["memory"] = "much"
    with pytest.raises(SubstanceError, match="no number"):
        lab.run(machines.configure(container))


def test_commands(machines_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, machines = machines_lab, machines_lab.machines
    container = lab.container(112)
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    assert "SECRET" not in lab.sh(container, "env")
    assert "ZLH" not in lab.sh(container, "env; tr '\\0' '\\n' < /proc/1/environ")
    assert lab.sh(container, "cat; id -u", stdin=b"to its input ") == "to its input 0"
    assert lab.run(machines.execute(container, ["printf", "%s|", "a b", "$HOME", ""])).out == b"a b|$HOME||"
    lab.sh(container, "exit 7", code=7)
    began = time.monotonic()
    with pytest.raises(SubstanceError, match=r"did not end within 0\.5 s"):
        lab.sh(container, "setsid sleep 4711 & sleep 4712", timeout_s=0.5)
    assert time.monotonic() - began < 5
    sleeps = ["sh", "-c", "cat /proc/[0-9]*/comm | grep -cx sleep"]
    until(lambda: lab.run(machines.execute(container, sleeps)).out == b"0\n")  # once its init has reaped them
    by_hand = subprocess.run([*attach(lab.directory, 112), "hostname"], capture_output=True, text=True)
    assert by_hand.stdout == "ct112\n"
    assert lab.run(machines.shutdown(container, 30)), "the killed command keeps nothing from ending"
    with pytest.raises(SubstanceError, match="CT 112 not running"):
        lab.sh(container, "true")


def test_it_ends_and_restarts_by_itself(machines_lab: Lab) -> None:
    lab, machines = machines_lab, machines_lab.machines
    container = lab.container(113)
    until(lambda: answers(container.address))
    boot = lab.sh(container, "stat -c %Y /proc/1; cat /proc/sys/kernel/random/boot_id")
    lab.sh(container, "systemctl reboot")

    def rebooted() -> bool:
        with contextlib.suppress(AssertionError, SubstanceError):
            return lab.sh(container, "stat -c %Y /proc/1; cat /proc/sys/kernel/random/boot_id") != boot
        return False

    until(rebooted)
    until(lambda: answers(container.address))
    assert lab.run(machines.running(container))
    lab.sh(container, "systemctl poweroff")
    until(lambda: not lab.run(machines.running(container)))
    lab.run(machines.start(container))
    assert not lab.run(machines.shutdown(container, 0)), "no time to end"
    assert lab.run(machines.shutdown(container, 30))


def test_refusals(machines_lab: Lab) -> None:
    lab, machines = machines_lab, machines_lab.machines
    container = lab.container(114, start=False)
    whole = dict(container.config)
    for change, text in (
        ({"net0": "name=eth0,ip=192.0.2.7/24"}, "outside the lab's network"),
        ({"net0": f"name=eth0,ip={lab.network[1]}/24"}, "the bridge's"),
        ({"net0": f"name=e\nlxc.hook.start = /bin/true,ip={lab.network[9]}/24"}, "no interface's name"),
        ({"hostname": "a\nlxc.hook.start = /bin/true"}, "no host name"),
    ):
        container.config = whole | change
        with pytest.raises(SubstanceError, match=text):
            lab.run(machines.start(container))
        assert not lab.run(machines.running(container))
    container.config = whole
    lab.run(machines.start(container))


@pytest.mark.soak
def test_many(machines_lab: Lab) -> None:
    """At once. All containers' roots are one user for the kernel's limits."""
    lab, machines = machines_lab, machines_lab.machines
    containers = [record(1_001 + number, lab.network) for number in range(30)]

    async def all_of(deed: Callable[[LabContainer], Coroutine[Any, Any, Any]]) -> list[Any]:
        return await asyncio.gather(*map(deed, containers))

    async def up(container: LabContainer) -> str:
        await machines.clone(lab.template, container)
        await machines.start(container)
        wait = ["sh", "-c", "until [ -S /run/dbus/system_bus_socket ]; do sleep 0.2; done; systemctl is-system-running --wait"]
        return (await machines.execute(container, wait, timeout_s=120)).out.decode().strip()

    assert lab.run(all_of(up)) == ["running"] * 30
    assert all(answers(container.address) for container in containers)
    assert all(lab.run(all_of(lambda container: machines.shutdown(container, 60))))
    lab.run(all_of(machines.destroy))
