"""Fleet ``lxc``: real LXC containers behind the lab's records. Root, Debian (or its like), ``lxc``, ``debootstrap``, ``zstd``.

::

    Machines (machines)      the Substance: one lock per lab, one Machine per VMID
      ├─ image               the base root file system, built once per recipe and machine
      ├─ bridge              the lab's own network, no way out
      ├─ machine             one container: overlay over the image, lxc configuration, start … stop
      └─ archive             backups and restores
    clean (ruins)            removes all that a lab in a directory ever made, knowing nothing but the directory

Everything that is made is findable from the directory alone: files under ``<directory>/lxc``; the bridge, the veths, the containers and
their cgroups by the :func:`~flows.lab.lxc.names.tag` of its path; processes by a mark in their environment. Mounts are made only in the
mount namespaces of containers and of single commands: they vanish with their processes.
"""

from flows.lab.lxc.machine import attach
from flows.lab.lxc.machines import Machines
from flows.lab.lxc.names import bridge_name, default_network, mark
from flows.lab.lxc.ruins import clean

__all__ = ["Machines", "attach", "bridge_name", "clean", "default_network", "mark"]
