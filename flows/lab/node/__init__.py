"""The node's side of ``community.proxmox.proxmox_pct_remote``: SSH as the node's user, and a ``/usr/sbin/pct`` that knows the lab's containers.

::

    sshd (ssh) ── in namespaces of its own (inside): private passwd, sudoers, pct; nothing of it touches the machine's files
      └─ sudo /usr/sbin/pct (pct) ── Unix socket, its standard streams as file descriptors ──▶ desk ──▶ lxc-attach
"""

from __future__ import annotations

from pathlib import Path


def clean(directory: Path) -> list[str]:
    """Ends what a killed lab in ``directory`` left; returns what that was."""
    return []
