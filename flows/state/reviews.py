"""Plans that wait for a person's decision. Read by the digest and the listings."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from flows.domain.finding import Action, Check
from flows.state import tables as t
from flows.state.database import Tx

_R = t.reviews.c


@dataclass(frozen=True, slots=True)
class Review:
    """A plan to be approved or rejected before ``expires_at`` (ms)."""

    id: str
    server_id: str | None
    check: Check
    action: Action
    requested_by: str
    requested_at: int
    expires_at: int


async def pending(tx: Tx) -> list[Review]:
    """Neither decided nor expired, oldest first."""
    query = select(t.reviews).where(_R.decided_at.is_(None), _R.expires_at > tx.now).order_by(_R.requested_at, _R.id)
    return [
        Review(r.id, r.server_id, Check(r.check), Action(r.action), r.requested_by, r.requested_at, r.expires_at) for r in await tx.execute(query)
    ]
