"""Containers that Proxmox does not list although a record has their number: asked for one by one, and few at a time.

Not listed is no proof. Many that are missing at once are no many losses: then nothing is asked, and nothing derived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from flows.domain.known import Known, Unknown
from flows.domain.ports import ProxmoxReader
from flows.domain.server import Server, ServerState
from flows.domain.sources import ProxmoxView
from flows.errors import AutomationError

#: Numbers that one sweep asks for at most.
MOST = 5
_STATES = frozenset({ServerState.ACTIVE, ServerState.SUSPENDED})


async def prove(
    proxmox: ProxmoxReader, answer: Known[ProxmoxView] | Unknown, servers: Iterable[Server], limit_s: float
) -> Known[ProxmoxView] | Unknown:
    """The view with what is proven absent. What could not be shown in time is not proven; the view itself stays known."""
    if isinstance(answer, Unknown):
        return answer
    missing = [s for s in servers if s.state in _STATES and s.vmid not in answer.value.containers]
    if not missing or len(missing) > MOST:
        return answer
    absent: set[int] = set()
    try:
        async with asyncio.timeout(limit_s):
            for server in missing:
                try:
                    if await proxmox.proven_absent(server.vmid, template_vmid=server.template_vmid):
                        absent.add(server.vmid)
                except AutomationError:
                    continue  # nothing shown, nothing derived
    except TimeoutError:
        pass
    return Known(replace(answer.value, absent=frozenset(absent))) if absent else answer
