"""The roles by real Ansible over SSH in a real container, looked at by testinfra: they converge, a second run changes nothing, and with a role's
tasks taken out every look at it fails, so that no look is for nothing.

One container for the file, in order: base, fabric_server, dev_environment.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

from tests.support import box as boxes
from tests.support.box import PROJECT, Box

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

GAME = b"""
const fs = require('fs');
const port = +/server-port=(\\d+)/.exec(fs.readFileSync('server.properties', 'utf8'))[1];
require('net').createServer(s => s.on('error', () => {})).listen(port);
require('readline').createInterface({input: process.stdin}).on('line', line => {
  if (line === 'stop') { fs.writeFileSync('world', 'saved'); process.exit(0); }
});
"""
PROXY = "/srv/game/config/FabricProxy-Lite.toml"
SECRET = 'a"b\\c-0123456789'


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, machines_images: Path) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("roles"), vmid=902)
    try:
        box.open()
        yield box
    finally:
        box.close()


@pytest.fixture
def host(box: Box) -> Host:
    return testinfra.get_host(f"ssh://root@{box.address}", ssh_config=str(box.ssh_config))


def run(box: Box, playbook: str, variables: Mapping[str, object], *arguments: str) -> str:
    """Output of a play that must succeed. The container's host key may have changed in it, as in a new one."""
    done = box.play(playbook, variables, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    public = box.sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub")
    (box.directory / "known_hosts").write_text(f"{box.address} {public}\n")
    return done.stdout


def run_emptied(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, playbook: str, variables: Mapping[str, object]) -> None:
    """The same play with a role that does nothing."""
    tree = tmp_path / "emptied"
    for name in ("playbooks", "roles"):
        shutil.copytree(PROJECT / name, tree / name)
    shutil.copy(PROJECT / "ansible.cfg", tree)
    (tree / "roles" / role / "tasks" / "main.yml").write_text("---\n[]\n")
    with monkeypatch.context() as patched:
        patched.setattr(boxes, "PROJECT", tree)
        run(box, playbook, variables)


def must_fail(looks: Mapping[str, Callable[[Host], bool]], host: Host) -> None:
    assert [name for name, look in looks.items() if look(host)] == [], "these looks are true whatever the role does"


def must_hold(looks: Mapping[str, Callable[[Host], bool]], host: Host) -> None:
    assert [name for name, look in looks.items() if not look(host)] == []


def is_file(host: Host, path: str, user: str, mode: int) -> bool:
    found = host.file(path)
    return bool(found.exists) and (found.user, found.group, found.mode) == (user, user, mode)


def has_line(host: Host, path: str, line: str) -> bool:
    return bool(host.run("grep -Fxq -- %s %s", line, path).rc == 0)


def says(host: Host, command: str, expected: str) -> bool:
    done = host.run(command)
    return done.rc == 0 and re.fullmatch(expected, done.stdout.strip()) is not None


# base


def base(box: Box) -> dict[str, object]:
    return {
        "base_authorized_key": (box.directory / "id.pub").read_text().strip(),
        "base_control_addresses": [str(box.machines.address)],
        "base_identity": "srv-902",
    }


BASE: Mapping[str, Callable[[Host], bool]] = {
    "one host key of its own": lambda h: says(h, "ls /etc/ssh | grep -c ^ssh_host_.*key$", "1"),
    "whose it is": lambda h: says(h, "cat /etc/ssh/zlh-host-keys-of", "srv-902"),
    "the controller's key from its address": lambda h: says(h, "cat /root/.ssh/authorized_keys", 'from="[0-9.]+" ssh-ed25519 .*'),
    "no passwords": lambda h: says(h, "sshd -T | grep -E '^(passwordauthentication|kbdinteractiveauthentication) no' | wc -l", "2"),
    "only that host key": lambda h: says(h, "sshd -T | grep '^hostkey '", "hostkey /etc/ssh/ssh_host_ed25519_key"),
}


def test_base(box: Box, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box.sh("ssh-keygen -A")  # a template has keys of every kind
    run_emptied(box, tmp_path, monkeypatch, "base", "bootstrap.yml", base(box))
    must_fail(BASE, host)
    before = box.sh("cat /etc/ssh/ssh_host_ed25519_key.pub")
    said = run(box, "bootstrap.yml", base(box))
    must_hold(BASE, host)
    own = box.sh("cat /etc/ssh/ssh_host_ed25519_key.pub")
    assert own != before, "the template's key is still in use"
    assert re.search(r"TASK \[base : Install what is missing\] \**\nskipping", said), "apt was called"
    assert "changed=0 " in run(box, "bootstrap.yml", base(box))
    assert box.sh("cat /etc/ssh/ssh_host_ed25519_key.pub") == own


def test_base_gives_a_clone_of_a_used_container_keys_of_its_own(box: Box) -> None:
    own = box.sh("cat /etc/ssh/ssh_host_ed25519_key.pub")
    run(box, "bootstrap.yml", {**base(box), "base_identity": "srv-903"})
    assert box.sh("cat /etc/ssh/ssh_host_ed25519_key.pub") != own
    run(box, "bootstrap.yml", base(box))


@pytest.mark.parametrize(
    "wrong", [{"base_authorized_key": "ssh-ed25519 AAAA x\nssh-ed25519 BBBB y"}, {"base_control_addresses": ['10.0.0.1",command="id']}]
)
def test_base_takes_no_second_key_and_no_option_in_an_address(box: Box, wrong: Mapping[str, object]) -> None:
    before = box.sh("cat /root/.ssh/authorized_keys")
    done = box.play("bootstrap.yml", {**base(box), **wrong})
    assert done.returncode == 2 and "must be one line" in done.stdout
    assert box.sh("cat /root/.ssh/authorized_keys") == before


# fabric_server


def ware(box: Box, name: str, content: bytes) -> dict[str, str]:
    return {"url": box.offer(name, content), "sha256": hashlib.sha256(content).hexdigest()}


def game(box: Box, *mods: str, secret: str = SECRET) -> dict[str, object]:
    jar = ware(box, "server.jar", GAME)
    return {
        "fabric_server_flavor": "fabric",
        "fabric_server_version": "1.16.5",
        "fabric_server_memory_mb": 1024,
        "fabric_server_port": 25570,
        "fabric_server_jar_url": jar["url"],
        "fabric_server_jar_sha256": jar["sha256"],
        "fabric_server_mods": [{"name": name, **ware(box, name, name.encode())} for name in mods],
        "fabric_server_forwarding_secret": secret,
    }


FABRIC: Mapping[str, Callable[[Host], bool]] = {
    "user": lambda h: h.user("game").exists and h.user("game").shell == "/usr/sbin/nologin",
    "jar": lambda h: is_file(h, "/srv/game/server.jar", "game", 0o640),
    "mod": lambda h: is_file(h, "/srv/game/mods/fabric-api.jar", "game", 0o640) and says(h, "cat /srv/game/mods/fabric-api.jar", "fabric-api"),
    "secret": lambda h: is_file(h, PROXY, "game", 0o600),
    "secret is TOML": lambda h: has_line(h, PROXY, r'secret = "a\"b\\c-0123456789"'),
    "properties": lambda h: has_line(h, "/srv/game/server.properties", "server-port=25570"),
    "eula": lambda h: has_line(h, "/srv/game/eula.txt", "eula=true"),
    "game.toml": lambda h: is_file(h, "/etc/zlh/game.toml", "root", 0o600) and has_line(h, "/etc/zlh/game.toml", "port = 25570"),
    "heap": lambda h: says(h, "systemctl cat zlh-game.service | grep -o 'Xmx[0-9]*M -jar server.jar nogui'", "Xmx640M -jar server.jar nogui"),
    "not enabled, not started": lambda h: says(
        h, "systemctl is-enabled zlh-game.service; systemctl is-active zlh-game.service; true", r"static\ninactive"
    ),
    "console": lambda h: h.file("/run/zlh-game/console").is_pipe and h.file("/run/zlh-game/console").mode == 0o600,
}


def test_fabric_server(box: Box, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = game(box, "fabric-api", "fabricproxy-lite")
    run_emptied(box, tmp_path, monkeypatch, "fabric_server", "preseed_fabric.yml", given)
    must_fail(FABRIC, host)
    said = run(box, "preseed_fabric.yml", given)
    assert "0123456789" not in said
    must_hold(FABRIC, host)
    assert "changed=0 " in run(box, "preseed_fabric.yml", given)


def test_a_change_restarts_an_idle_game_and_leaves_the_customers_things_alone(box: Box, host: Host) -> None:
    box.sh("echo theirs > /srv/game/mods/theirs.jar; sed -i -e s/25570/25565/ -e 's/^motd=.*/motd=mine/' /srv/game/server.properties")
    box.sh("echo pvp=false >> /srv/game/server.properties; systemctl start zlh-game")
    before = box.sh("systemctl show -P MainPID zlh-game")
    said = run(box, "preseed_fabric.yml", game(box, "fabric-api", secret="another-0123456789"))
    assert "is in use: what" not in said
    assert box.sh("systemctl is-active zlh-game") == "active" and box.sh("systemctl show -P MainPID zlh-game") != before
    assert box.sh("cat /srv/game/world") == "saved", "it was not stopped by its console"
    assert box.sh("ls /srv/game/mods") == "fabric-api.jar\ntheirs.jar", "ours that is not wanted goes, theirs stays"
    properties = host.file("/srv/game/server.properties").content_string.splitlines()
    assert {"server-port=25570", "motd=mine", "pvp=false"} <= set(properties)


def test_a_change_leaves_a_game_in_use_alone_and_says_so(box: Box) -> None:
    before = box.sh("systemctl show -P MainPID zlh-game")
    box.until("ss -Htln sport = :25570 | grep -q .")
    with socket.create_connection((box.address, 25570), timeout=10):
        said = run(box, "preseed_fabric.yml", game(box, "fabric-api", secret="a-third-0123456789"))
    assert "is in use: what changed takes effect with its next restart" in said
    assert box.sh("systemctl show -P MainPID zlh-game") == before
    box.sh("systemctl stop zlh-game")


def test_a_customers_link_leads_root_nowhere(box: Box) -> None:
    box.sh("mv /srv/game/config /srv/game/mine && ln -s /etc /srv/game/config && chown -h game: /srv/game/config")
    assert box.play("preseed_fabric.yml", game(box, "fabric-api")).returncode == 2
    assert box.sh("stat -c '%U %a' /etc") == "root 755" and not box.sh("ls /etc | grep FabricProxy || true")
    box.sh("rm /srv/game/config && mv /srv/game/mine /srv/game/config")


# dev_environment


def developer(box: Box, *versions: str) -> dict[str, object]:
    runtimes = []
    for version in versions:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            script = tarfile.TarInfo(f"node-v{version}-linux-x64/bin/zlhnode")
            content = f"#!/bin/sh\necho v{version}\n".encode()
            script.size, script.mode = len(content), 0o755
            tar.addfile(script, io.BytesIO(content))
        runtimes.append({"name": "node", "version": version, **ware(box, f"node-{version}.tar.gz", out.getvalue())})
    return {"dev_environment_runtimes": runtimes, "dev_environment_code_server": False, "dev_environment_workspace": "/home/dev/workspace"}


DEVELOPER: Mapping[str, Callable[[Host], bool]] = {
    "user": lambda h: h.user("dev").exists and h.user("dev").uid == 1000 and h.user("dev").shell == "/bin/bash",
    "workspace": lambda h: is_file(h, "/home/dev/workspace", "dev", 0o750),
    "runtime": lambda h: says(h, "/opt/zlh/runtimes/node/1.2.3/bin/zlhnode", "v1.2.3"),
    "current": lambda h: h.file("/opt/zlh/runtimes/node/current").is_symlink,
    "login shell": lambda h: says(h, "su - dev -c 'zlhnode'", "v1.2.3"),
    "no login shell": lambda h: says(h, "su dev -c 'zlhnode'", "v1.2.3"),
    "sudo": lambda h: says(h, "sudo -u dev zlhnode 2>/dev/null", "v1.2.3"),
    "user's services": lambda h: says(h, "grep -c ^PATH=/opt/zlh/runtimes/node/current/bin: /etc/environment.d/60-zlh.conf", "1"),
    "what the agent verifies": lambda h: is_file(h, "/etc/zlh/dev.toml", "root", 0o600) and has_line(h, "/etc/zlh/dev.toml", 'version = "1.2.3"'),
}


def test_dev_environment(box: Box, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = developer(box, "1.2.3")
    run_emptied(box, tmp_path, monkeypatch, "dev_environment", "dev_environment.yml", given)
    must_fail(DEVELOPER, host)
    run(box, "dev_environment.yml", given)
    must_hold(DEVELOPER, host)
    assert "changed=0 " in run(box, "dev_environment.yml", given)


def test_a_developers_command_over_ssh_has_the_path_too(box: Box) -> None:
    box.sh("install -d -o dev -g dev -m 700 /home/dev/.ssh && install -o dev -g dev -m 600 /root/.ssh/authorized_keys /home/dev/.ssh/")
    done = subprocess.run(
        ["ssh", "-F", str(box.ssh_config), f"dev@{box.address}", "zlhnode"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "v1.2.3\n", done.stderr


def test_versions_stand_side_by_side_and_a_tampered_archive_changes_nothing(box: Box, host: Host) -> None:
    given = developer(box, "1.2.3", "1.3.0")
    (box.directory / "web" / "node-1.3.0.tar.gz").write_bytes(b"something else")
    assert box.play("dev_environment.yml", given).returncode == 2
    assert box.sh("su - dev -c zlhnode") == "v1.2.3" and box.sh("ls /opt/zlh/runtimes/node") == "1.2.3\ncurrent"
    run(box, "dev_environment.yml", developer(box, "1.2.3", "1.3.0"))
    assert box.sh("su - dev -c zlhnode") == "v1.3.0" and box.sh("ls -A /opt/zlh/runtimes/node") == "1.2.3\n1.3.0\ncurrent"
