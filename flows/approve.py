"""Flow ``approve``: a person's yes to a review, from the engine's page."""

from __future__ import annotations

from prefect import flow

from flows import bootstrap
from flows.act import approvals
from flows.parameters import Approver, ReviewId
from flows.running import say


@flow(name="approve", flow_run_name="approve-{review_id}", persist_result=False)
async def approve(review_id: ReviewId, approver: Approver) -> str:
    """Approves the plan if it is still exactly the one that was asked; the next sweep carries it out. Fails, with the reason, if not."""
    async with bootstrap.deps() as deps:
        review = await approvals.approve(deps, review_id, f"engine:{approver}"[:64])
    say()(f"{review.action} of {review.subject} approved by {review.decided_by}: the next sweep carries it out")
    return "approved"
