"""Leases: who may act on a server now. Mutually exclusive, by the database's clock, fenced by tokens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LeaseKind(StrEnum):
    OPERATION = "operation"
    REPAIR = "repair"
    BACKUP = "backup"
    RESTORE = "restore"
    PATCH = "patch"
    MAINTENANCE = "maintenance"


#: An expired lease of these kinds is free for anybody.
FREE_WHEN_EXPIRED = frozenset({LeaseKind.REPAIR, LeaseKind.BACKUP, LeaseKind.MAINTENANCE})
#: An expired lease of these kinds still blocks everything but its own resumption.
BLOCKS_WHEN_EXPIRED = frozenset({LeaseKind.PATCH, LeaseKind.RESTORE})
#: Leases of these kinds last no longer than their holder's heartbeat; the others were taken for as long as they say.
KEPT_ALIVE = frozenset({LeaseKind.OPERATION, LeaseKind.REPAIR, LeaseKind.BACKUP})


@dataclass(frozen=True, slots=True)
class Lease:
    """``subject`` is a server id or ``<check>:<name>`` for what is no server. ``token`` only ever grows."""

    subject: str
    token: int
    kind: LeaseKind | None = None
    holder: str | None = None
    operation_id: str | None = None
    reason: str = ""
    taken_at: int = 0
    heartbeat_at: int = 0
    expires_at: int = 0

    def expired(self, now: int) -> bool:
        """Also where its heartbeat lies ahead by more than the expiry: the clock was set back since, and might keep a dead holder's for hours."""
        ahead = self.kind in KEPT_ALIVE and self.heartbeat_at - now > self.expires_at - self.heartbeat_at
        return self.holder is not None and (self.expires_at <= now or ahead)

    def blocks(self, now: int) -> bool:
        """Whether a newcomer must keep away. An expired ``operation`` lease is an orphan: the sweep frees it, nobody else."""
        if self.holder is None or self.kind is None:
            return False
        return not self.expired(now) or self.kind not in FREE_WHEN_EXPIRED
