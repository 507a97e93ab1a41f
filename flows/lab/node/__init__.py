"""The node's side of ``community.proxmox.proxmox_pct_remote``: SSH as the node's user, and a ``/usr/sbin/pct`` that knows the lab's containers.

::

    inside  sshd, first process of namespaces of its own: private passwd, sudoers, pct; nothing of it touches the machine's files
      └─ sudo /usr/sbin/pct (pct) ── Unix socket, its standard streams as file descriptors ──▶ desk ──▶ lxc-attach

It ends with the lab, sessions included, also when the lab is killed; :func:`flows.lab.lxc.clean` finds what was just being started.
"""

from flows.lab.node.part import NodePart, start

__all__ = ["NodePart", "start"]
