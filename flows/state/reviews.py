"""Reviews: plans that wait for a person's decision. Asked for and withdrawn by the sweep, decided by people, carried out once by an act.

A decision is one guarded statement: two people, or a person and a sweep, cannot both decide. Every transition is audited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import bindparam, or_, select, update

from flows.domain.finding import Action, Check, Decision, Review
from flows.errors import Conflict, NotFound
from flows.state import audit
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.episodes import ACTOR
from flows.state.unique import insert_unique

_R = t.reviews.c
#: Reviews older than this no snapshot needs, ms: the last one's expiry and a day of reminders.
RECENT_MS = 3 * 86_400_000
_RECENT = select(t.reviews).where(or_(_R.requested_at > bindparam("since"), _R.expires_at > bindparam("at"))).order_by(_R.requested_at, _R.id)


async def pending(tx: Tx) -> list[Review]:
    """Neither decided nor expired, oldest first."""
    query = select(t.reviews).where(_R.decided_at.is_(None), _R.expires_at > tx.now).order_by(_R.requested_at, _R.id)
    return [to_review(r) for r in await tx.execute(query)]


async def recent(tx: Tx) -> tuple[Review, ...]:
    """Those of the last days, decided or not, and all that may still be carried out; oldest first."""
    return tuple(to_review(r) for r in await tx.execute(_RECENT, {"since": tx.now - RECENT_MS, "at": tx.now}))


async def get(tx: Tx, review_id: str) -> Review | None:
    row = (await tx.execute(select(t.reviews).where(_R.id == review_id))).one_or_none()
    return None if row is None else to_review(row)


async def request(tx: Tx, asked: Iterable[Review]) -> None:
    """Writes what the sweep asks; the same request twice is one."""
    for review in asked:
        row = {
            "id": review.id,
            "server_id": review.server_id,
            "check": review.check.value,
            "action": review.action.value,
            "plan_hash": review.plan_hash,
            "plan": dict(review.plan),
            "requested_by": review.requested_by,
            "requested_at": review.requested_at,
            "expires_at": review.expires_at,
        }
        if await insert_unique(tx, t.reviews, row):
            await _line(tx, review.requested_by, "requested", review)


async def withdraw(tx: Tx, reasons: Mapping[str, str]) -> None:
    """Closes undecided and approved reviews that nobody needs any more, with the reason for the audit."""
    for review_id, why in reasons.items():
        if await _decide(tx, review_id, Decision.WITHDRAWN, ACTOR, (None, Decision.APPROVED)):
            review = await get(tx, review_id)
            assert review is not None
            await _line(tx, ACTOR, "withdrawn", review, why)


async def approve(tx: Tx, review_id: str, approver: str) -> Review:
    """Raises NotFound, Conflict where it is decided already or expired. The caller has shown that the plan is still the same."""
    return await _by_person(tx, review_id, Decision.APPROVED, approver, (None,), "")


async def reject(tx: Tx, review_id: str, approver: str, reason: str = "") -> Review:
    """Also takes an approval back that was not carried out yet. Raises NotFound, Conflict."""
    return await _by_person(tx, review_id, Decision.REJECTED, approver, (None, Decision.APPROVED), reason)


async def carry_out(tx: Tx, review_id: str, plan_hash: str) -> bool:
    """Uses an approval up, in the transaction of its act's intent. False: it is not approved, has expired, was used, or is of another plan."""
    done = await tx.execute(
        update(t.reviews)
        .where(_R.id == review_id, _R.decision == Decision.APPROVED.value, _R.plan_hash == plan_hash, _R.expires_at > tx.now)
        .values(decision=Decision.CARRIED_OUT.value)
    )
    if done.rowcount != 1:
        return False
    review = await get(tx, review_id)
    assert review is not None
    await _line(tx, ACTOR, "carried_out", review)
    return True


async def _by_person(tx: Tx, review_id: str, to: Decision, who: str, before: tuple[Decision | None, ...], reason: str) -> Review:
    known = await get(tx, review_id)
    if known is None:
        raise NotFound(f"review {review_id}", why="there is none", remedy="zlh reviews --all")
    if not await _decide(tx, review_id, to, who, before, unexpired=True):
        now = await get(tx, review_id)
        assert now is not None
        why = f"it was {now.decision.value} by {now.decided_by}" if now.decision else "it has expired"
        raise Conflict(f"review {review_id}", why=why, remedy="see what waits: zlh reviews", kind="review_decided")
    review = await get(tx, review_id)
    assert review is not None
    await _line(tx, who, to.value, review, reason)
    return review


async def _decide(tx: Tx, review_id: str, to: Decision, who: str, before: tuple[Decision | None, ...], *, unexpired: bool = False) -> bool:
    states = [_R.decision.is_(None) if state is None else _R.decision == state.value for state in before]
    guard = [_R.id == review_id, or_(*states)]
    if unexpired:
        guard.append(_R.expires_at > tx.now)
    done = await tx.execute(update(t.reviews).where(*guard).values(decision=to.value, decided_by=who[:64], decided_at=tx.now))
    return bool(done.rowcount == 1)


async def _line(tx: Tx, who: str, what: str, review: Review, reason: str = "") -> None:
    detail = {"check": review.check.value, "action": review.action.value, "subject": review.subject, "plan_hash": review.plan_hash}
    await audit.append(
        tx, who, f"review.{what}", f"review:{review.id}", server_id=review.server_id, detail=detail | ({"reason": reason[:200]} if reason else {})
    )


def to_review(row: Any) -> Review:
    """A row of the table as the domain knows it."""
    return Review(
        id=row.id,
        check=Check(row.check),
        action=Action(row.action),
        subject=str(row.plan.get("subject", "")),
        plan_hash=row.plan_hash,
        plan=row.plan,
        requested_by=row.requested_by,
        requested_at=row.requested_at,
        expires_at=row.expires_at,
        server_id=row.server_id,
        decision=None if row.decision is None else Decision(row.decision),
        decided_by=row.decided_by,
        decided_at=row.decided_at,
    )
