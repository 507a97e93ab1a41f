"""What a repair handler is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flows.act.deps import Deps
from flows.act.guarded import GuardedProxmox
from flows.act.heartbeat import Heartbeat
from flows.act.steps.base import Effect
from flows.domain.finding import Action, Finding
from flows.domain.server import Server
from flows.errors import Conflict
from flows.state import leases, servers


@dataclass
class RepairContext:
    """Of one repair under its own lease. ``token`` fences its effects, ``epoch`` its sweep's transactions."""

    deps: Deps
    finding: Finding
    subject: str
    token: int
    epoch: int
    heartbeat: Heartbeat

    @property
    def proxmox(self) -> GuardedProxmox:
        return GuardedProxmox(self.deps.proxmox, lambda: self.heartbeat.room_for(self.deps.settings.timing.call_s))

    async def server(self) -> Server:
        """The server as it is now. Raises Conflict when its record is gone, Fenced when the lease is another's."""
        assert self.finding.server_id is not None
        async with self.deps.database.read() as tx:
            await leases.held(tx, self.subject, self.token)
            server = await servers.get(tx, self.finding.server_id)
        if server is None:
            raise Conflict(f"server {self.finding.server_id}", why="its record is gone")
        return server


class RepairHandler:
    """``drifted`` reads the condition at its source: before the effect (no: somebody healed it) and after (yes: the repair failed)."""

    action: ClassVar[Action]
    effect: ClassVar[Effect]
    #: Longest time of check, effect and check together, seconds: no act begins unless it fits before the sweep's limit.
    limit_s: ClassVar[float] = 10.0

    async def drifted(self, ctx: RepairContext) -> bool:
        raise NotImplementedError

    async def heal(self, ctx: RepairContext) -> bool:
        """False: nothing had to change any more."""
        raise NotImplementedError
