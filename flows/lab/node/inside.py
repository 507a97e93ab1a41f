"""Becomes a node's SSH server, in namespaces that the lab has made for it: ``python inside.py SPEC.json``.

The first process of its own mount, process and host-name namespaces: what it lays over ``/etc``, ``/usr/sbin``, ``/run`` and ``/var/log`` is seen
by it and its sessions alone, and is gone with them. A program by itself; standard library alone.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

STAGE = Path("/run/zlh-lab")
UID = 60_813
SUDOERS = """\
Defaults env_reset, !syslog, !use_pty, !requiretty, !lecture
Defaults secure_path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
root ALL=(ALL:ALL) ALL
{user} ALL=(root) NOPASSWD: /usr/sbin/pct
"""
PAM = "auth required pam_deny.so\naccount required pam_permit.so\nsession required pam_permit.so\n"
PCT = """\
#!/bin/sh
[ "$(/usr/bin/id -u)" = 0 ] || {{ echo "please run as root" >&2; exit 255; }}
exec '{python}' -IS {stage}/pct.py "$@"
"""
SSHD = """\
Port {port}
AddressFamily inet
ListenAddress {address}
HostKey {stage}/host_key
AuthorizedKeysFile {stage}/authorized_keys
AllowUsers {user}
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
UsePAM no
UseDNS no
DisableForwarding yes
PermitUserRC no
PermitUserEnvironment no
PrintMotd no
PrintLastLog no
StrictModes yes
MaxStartups 200:30:400
MaxSessions 200
ClientAliveInterval 15
LoginGraceTime 30
"""


def mount(*arguments: str) -> None:
    subprocess.run(["/usr/bin/mount", "-n", *arguments], check=True)  # noqa: S603 - our own argv, no shell


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    path.chmod(mode)


def furnish(spec: dict[str, Any], stage: Path) -> None:
    """Everything that is laid over the machine's own, below ``stage``."""
    user = spec["user"]
    etc, sbin = stage / "etc", stage / "sbin"
    write(
        etc / "passwd",
        f"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
        f"sshd:x:60812:65534::/run/sshd:/usr/sbin/nologin\n{user}:x:{UID}:{UID}::{STAGE}/home:/bin/sh\n",
    )
    write(etc / "shadow", f"root:*:19000:0:99999:7:::\nnobody:*:19000::::::\nsshd:*:19000::::::\n{user}:*:19000:0:99999:7:::\n", 0o600)
    write(etc / "group", f"root:x:0:\nnogroup:x:65534:\ntty:x:5:\nutmp:x:43:\n{user}:x:{UID}:\n")
    write(etc / "nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\nservices: files\nprotocols: files\n")
    write(etc / "hosts", f"127.0.0.1 localhost\n{spec['address']} {spec['name']}\n")
    write(etc / "hostname", f"{spec['name']}\n")
    write(etc / "sudoers", SUDOERS.format(user=user), 0o440)
    write(etc / "pam.d" / "sudo", PAM)
    # The interpreter ignores the environment and the caller's directory, as a program for sudo must.
    write(sbin / "pct", PCT.format(python=sys.executable, stage=STAGE), 0o755)
    shutil.copyfile(spec["pct"], stage / "pct.py")
    write(stage / "host_key", Path(spec["host_key"]).read_text(), 0o600)
    write(stage / "authorized_keys", f"restrict,pty {Path(spec['authorized_key']).read_text()}")
    write(stage / "sshd_config", SSHD.format(stage=STAGE, **spec))
    home = stage / "home"
    home.mkdir(mode=0o700)
    os.chown(home, UID, UID)


def main(spec_file: str) -> None:
    spec = json.loads(Path(spec_file).read_text())
    if os.getpid() != 1 or os.readlink("/proc/self/ns/mnt") == spec["outside"]:
        sys.exit("this lays files over /etc and /usr/sbin: only the lab starts it, in namespaces of its own")
    here = Path(spec_file).parent
    staging = here / "stage"
    staging.mkdir(exist_ok=True)
    mount("-t", "proc", "proc", "/proc")
    mount("-t", "tmpfs", "-o", "mode=0755,size=16m", "zlh-lab", str(staging))
    stage = staging / STAGE.name
    stage.mkdir()
    (staging / "sshd").mkdir(mode=0o755)
    furnish(spec, stage)
    # The lab's socket is a file of the lab's directory, which may itself lie below /run: it is brought along under a name of its own.
    (stage / "desk").touch()
    mount("--bind", spec["desk"], str(stage / "desk"))
    mount("-t", "overlay", "-o", f"lowerdir={stage / 'etc'}:/etc", "zlh-lab", "/etc")
    mount("-t", "overlay", "-o", f"lowerdir={stage / 'sbin'}:/usr/sbin", "zlh-lab", "/usr/sbin")
    mount("-t", "tmpfs", "-o", "mode=0755,size=4m", "zlh-lab", "/var/log")
    mount("--move", str(staging), "/run")
    socket.sethostname(spec["name"])
    os.chdir("/")
    # The path in an argument tells whose it is to whoever cleans up.
    argv = ["/usr/sbin/sshd", "-D", "-e", "-f", f"{STAGE}/sshd_config", "-o", f"PidFile {here / 'sshd.pid'}"]
    os.execv(argv[0], argv)  # noqa: S606 - our own argv


if __name__ == "__main__":
    main(sys.argv[1])
