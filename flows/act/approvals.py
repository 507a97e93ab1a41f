"""A person's decision on a review. Called by ``zlh approve|reject`` and the flow ``approve``.

Approving looks afresh and refuses what is no longer exactly what was asked. It does nothing to the world itself: the next sweep makes the same
plan from its own observation, finds the approval, uses it up in the transaction of the intent, and acts under epoch and lease like any repair.
"""

from __future__ import annotations

from flows.act.deps import Deps
from flows.act.policy import policy_of
from flows.act.sweep import observe
from flows.decide import plan as deciding
from flows.decide.checks.registry import CHECKS
from flows.decide.reviews import hash_of, plan_of
from flows.domain.finding import NOT_YET, Plan, Reason, Review, Suppressed
from flows.errors import Conflict, NotFound, Unproven
from flows.state import reviews


async def approve(deps: Deps, review_id: str, approver: str) -> Review:
    """Raises NotFound; Conflict where it is decided, expired, over, changed, or cannot be carried out now; Unproven where a source that it
    rests on gave no answer."""
    review = await _present(deps, review_id)
    what = f"review {review_id[-8:]}"
    if review.action in NOT_YET:
        raise Conflict(
            what, why=f"{review.action} of {review.plan.get('where') or review.subject}: {NOT_YET[review.action]}", remedy=_by_hand(review)
        )
    snapshot, policy = await observe(deps), policy_of(deps.settings)
    plan = deciding.decide(snapshot, policy)
    unproven = plan.skipped.get(review.check.value, "") or CHECKS[review.check].unproven(snapshot, policy, review.subject)
    _same(plan, review, what, unproven)
    async with deps.database.write() as tx:
        return await reviews.approve(tx, review_id, approver)


async def reject(deps: Deps, review_id: str, approver: str, reason: str = "") -> Review:
    """Needs no look: a no is always possible, until it was carried out. Raises NotFound, Conflict."""
    async with deps.database.write() as tx:
        return await reviews.reject(tx, review_id, approver, reason)


async def _present(deps: Deps, review_id: str) -> Review:
    async with deps.database.read() as tx:
        review, now = await reviews.get(tx, review_id), tx.now
    if review is None:
        raise NotFound(f"review {review_id}", why="there is none", remedy="zlh reviews --all")
    if review.decision is not None or review.expires_at <= now:
        why = f"it was {review.decision} by {review.decided_by}" if review.decision else "it has expired"
        raise Conflict(f"review {review_id[-8:]}", why=why, remedy="see what waits: zlh reviews", kind="review_decided")
    return review


def _same(plan: Plan, review: Review, what: str, unproven: str) -> None:
    """Raises unless the fresh plan asks for exactly this approval. ``unproven``: why no finding would prove nothing."""
    rest: Suppressed | None = next((s for s in plan.suppressed if s.finding.key == review.key), None)
    if rest is None:
        if unproven:
            raise Unproven(what, why=unproven, remedy="try again when it answers: zlh doctor")
        raise Conflict(what, why="what it asks about is over", remedy="nothing to do", kind="review_over")
    if rest.finding.confirmed and hash_of(plan_of(rest.finding)) != review.plan_hash:  # what waits says so in its evidence, and is no other plan
        raise Conflict(
            what, why="the plan has changed since it was asked", remedy="zlh reviews: the next sweep asks for the new one", kind="plan_changed"
        )
    if rest.reason is not Reason.AWAITING_REVIEW:
        detail = f" ({rest.detail})" if rest.detail else ""
        raise Conflict(
            what, why=f"it cannot be carried out now: {rest.reason}{detail}", remedy="see what is in the way: zlh findings", kind="review_held"
        )


def _by_hand(review: Review) -> str:
    server = str(review.plan.get("where", "")).partition(" ")[0]
    return f"by hand: zlh restore {server}" if server else ""
