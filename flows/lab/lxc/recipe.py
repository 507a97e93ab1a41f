"""What the base image of every container holds. Its :func:`digest` names the image: whoever changes the recipe gets another one."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "procps", "iproute2", "nftables", "libnss-myhostname"),
    *("openssh-server", "sudo", "ca-certificates", "python3", "python3-apt", "unattended-upgrades"),
    *("zstd", "restic", "nodejs"),
)
JAVA = """\
#!/bin/sh
# The lab's java: Mojang's server cannot be had here. A jar of the lab is one JavaScript file.
heap=
while [ $# -gt 0 ]; do
  case "$1" in
    -version | --version) echo 'openjdk version "21-lab"' >&2; exit 0 ;;
    -Xmx*[Mm]) heap=${1#-Xmx}; heap=${heap%[Mm]} ;;
    -Xmx*[Gg]) heap=${1#-Xmx}; heap=$((${heap%[Gg]} * 1024)) ;;
    -jar)
      [ $# -ge 2 ] || { echo 'Error: -jar requires jar file specification' >&2; exit 1; }
      [ -r "$2" ] || { echo "Error: Unable to access jarfile $2" >&2; exit 1; }
      jar=$2
      shift 2
      exec /usr/bin/node ${heap:+"--max-old-space-size=$heap"} "$jar" "$@"
      ;;
    -*) ;;
    *) echo "Error: the lab's java runs only -jar FILE, not $1" >&2; exit 1 ;;
  esac
  shift
done
echo "Usage: java [options] -jar FILE [arguments]" >&2
exit 1
"""
#: Path → (mode, content).
FILES: dict[str, tuple[int, str]] = {
    "usr/bin/java": (0o755, JAVA),
    "etc/apt/sources.list": (0o644, "# A container of the lab has no way out: its packages are in the image.\n"),
    "etc/resolv.conf": (0o644, "# A container of the lab has no way out, and no resolver.\n"),
    "etc/hosts": (0o644, "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
    "etc/machine-id": (0o444, ""),  # each container makes its own at its first start
    "etc/systemd/journald.conf.d/10-lab.conf": (0o644, "[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n"),
    # The image has no host keys: a container makes its own at its first start.
    "etc/systemd/system/ssh.service.d/10-lab.conf": (
        0o644,
        "[Service]\nExecStartPre=\n"
        "ExecStartPre=/bin/sh -c 'test -s /etc/ssh/ssh_host_ed25519_key"
        ' || exec ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key\'\n'
        "ExecStartPre=/usr/sbin/sshd -t\n",
    ),
}
#: Of no use in a container, and slow.
MASKED = (
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket"),
    *("getty@.service", "container-getty@.service", "console-getty.service", "systemd-timesyncd.service", "systemd-networkd-wait-online.service"),
    *("dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount"),
    *("proc-sys-fs-binfmt_misc.automount", "systemd-modules-load.service", "e2scrub_reap.service"),
)
#: Would fetch or work by themselves; a role may enable them.
DISABLED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer", "unattended-upgrades.service"),
    *("e2scrub_reap.service", "systemd-timesyncd.service", "systemd-pstore.service", "getty@tty1.service"),
)
#: Contents of directories and single files that go: the mirror's indexes, the build's keys, what nobody reads in a lab.
_REMOVED = (
    *("var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*.log", "var/log/apt/*", "etc/ssh/ssh_host_*", "etc/hostname", "var/lib/dbus/machine-id"),
    *(
        "usr/share/doc/*",
        "usr/share/man/*",
        "usr/share/info/*",
        "usr/share/locale/*",
        "var/lib/systemd/random-seed",
        "root/.bash_history",
        "etc/apt/sources.list.d/*",
    ),
)


def digest() -> str:
    """16 hexadecimal digits of everything above."""
    text = json.dumps([os.uname().machine, SUITE, PACKAGES, FILES, MASKED, DISABLED, _REMOVED], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def furnish(root: Path) -> None:
    """Turns debootstrap's result in ``root`` into the image. Nothing runs in it. Raises OSError."""
    # Not Path.glob(): it takes a link whose target is only in the image for absent.
    for pattern in _REMOVED:
        for path in (root / name for name in glob.glob(pattern, root_dir=root)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for name, (mode, content) in FILES.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
    units = root / "etc/systemd/system"
    for unit in DISABLED:
        for link in glob.glob(f"*.wants/{unit}", root_dir=units):
            (units / link).unlink()
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
