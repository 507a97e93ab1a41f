"""Proxmox VE, over proxmoxer. ``bootstrap`` builds the one :class:`ProxmoxClient`; observers see its reading half, ``act`` all of it.

::

    client.py   the calls, as flows.domain.ports has them
    absence.py  when a container is proven absent
    rights.py   what our token must hold, and what it holds
    session.py  one HTTPS call in a thread: deadline, size cap, CA
    errors.py   Proxmox's answers, by literal text and status, as flows.errors
    tasks.py    UPIDs, and waiting for the task behind one
    answers.py  JSON of the API as flows.domain.sources
"""

from flows.clients.proxmox.client import ProxmoxClient
from flows.clients.proxmox.rights import LEAST_RIGHTS

__all__ = ["LEAST_RIGHTS", "ProxmoxClient"]
