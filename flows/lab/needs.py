"""What fleet ``lxc`` needs of its machine: root, and programs of Debian's packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from flows.errors import Permanent

#: Program → the Debian package that brings it.
PROGRAMS: Mapping[str, str] = {
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "knotd": "knot",
    "lxc-attach": "lxc",
    "lxc-start": "lxc",
    "node": "nodejs",
    "npm": "npm",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "sudo": "sudo",
    "unshare": "util-linux",
    "zstd": "zstd",
}
#: Where Debian keeps what is for root, wherever the caller's PATH points.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
REMEDY = "or all that the lab needs: make lab-host, which is ansible-playbook -i localhost, -c local playbooks/lab.yml"


def missing() -> dict[str, str]:
    """Programs that are not here, with their packages."""
    path = f"{os.environ.get('PATH', '')}:{PATH}"
    return {program: package for program, package in PROGRAMS.items() if shutil.which(program, path=path) is None}


def require() -> None:
    """Raises Permanent with the remedy where this machine cannot run real containers."""
    what = "starting a lab of real containers"
    if os.geteuid() != 0:
        raise Permanent(what, why="containers, mounts and bridges need root", remedy="run it as root, or without it: zlh lab up --fleet sim")
    absent = missing()
    if absent:
        packages = " ".join(sorted(set(absent.values())))
        raise Permanent(what, why=f"not installed: {', '.join(sorted(absent))}", remedy=f"apt-get install {packages}; {REMEDY}")
