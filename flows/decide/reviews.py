"""Reviews: what a person must approve, what is asked, and when an approval holds. Pure.

A plan is what would be done and to what; its hash is made from the finding, so that it is made anew with every observation. An approval is for
one hash, until it expires, and for one act. Called by ``plan``, and through it by the sweep, ``zlh explain``, dry runs and ``zlh approve``.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping

from flows.domain.finding import NOT_YET, REVIEWED, Decision, EpisodeChange, Finding, Policy, Review, Transition
from flows.domain.snapshot import Snapshot

#: Who asks.
REQUESTER = "system:controller"
#: People hear of a changed plan of one finding at most this often, ms; an act that they approved themselves does not make them wait.
ASK_MS = 3_600_000
_OPEN = frozenset({None, Decision.APPROVED})


def plan_of(finding: Finding) -> dict[str, object]:
    """What would be done, as a person reads it and as it is hashed."""
    assert finding.action is not None
    return {
        "check": finding.check.value,
        "action": finding.action.value,
        "subject": finding.subject,
        "server_id": finding.server_id,
        "evidence": dict(finding.evidence),
    }


def hash_of(plan: Mapping[str, object]) -> str:
    """SHA-256 of the plan as canonical JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Desk:
    """The reviews of one snapshot."""

    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self._now, self._policy = snapshot.now, policy
        self._by_key: dict[str, list[Review]] = {}
        for review in sorted(snapshot.fleet.reviews, key=lambda r: (r.requested_at, r.id)):
            self._by_key.setdefault(review.key, []).append(review)

    def approval(self, finding: Finding) -> Review | None:
        """The approval that allows the finding's act now."""
        if finding.action is None or finding.action in NOT_YET:
            return None
        review = self.standing(finding)
        return review if review is not None and review.decision is Decision.APPROVED else None

    def standing(self, finding: Finding) -> Review | None:
        """The newest review of exactly this plan that is still good: undecided, approved, or rejected until it expires."""
        wanted = hash_of(plan_of(finding))
        good = [r for r in self._of(finding) if r.plan_hash == wanted and r.expires_at > self._now and r.decision in {*_OPEN, Decision.REJECTED}]
        return good[-1] if good else None

    def request(self, finding: Finding) -> Review:
        """A new review of the finding's plan, by an id that the same facts give again."""
        plan = plan_of(finding)
        digest = hash_of(plan)
        assert finding.action is not None
        return Review(
            id=_id(self._now, digest),
            check=finding.check,
            action=finding.action,
            subject=finding.subject,
            plan_hash=digest,
            plan=plan | {"summary": finding.summary, "where": finding.where},
            requested_by=REQUESTER,
            requested_at=self._now,
            expires_at=self._now + self._policy.review_ms,
            server_id=finding.server_id,
        )

    def news(self, finding: Finding, review: Review, told_at: int | None) -> bool:
        """Whether people are to hear of the undecided review now: its plan is new to them, and they were not told of another plan of the same
        finding within the hour. What an agent claims is a part of the plan: it must not page with every new number that it invents. Once the
        hour is over, what was held back is told, if it still stands. ``told_at``: when its episode was last announced, if it was."""
        mine = [r for r in self._of(finding) if r.id != review.id]
        if any(r.plan_hash == review.plan_hash and r.decision is not Decision.CARRIED_OUT for r in mine):
            return False  # a reminder: they were asked for exactly this and did not carry it out
        if told_at is None:
            return True
        if review.requested_at <= told_at:
            return False  # told already
        changed = bool(mine) and mine[-1].decision is not Decision.CARRIED_OUT
        return not changed or self._now - told_at >= ASK_MS

    def says(self, finding: Finding) -> str:
        """How far the decision is, in words."""
        if finding.action is not None and finding.action in NOT_YET:
            return f"cannot be approved: {NOT_YET[finding.action]}"
        review = self.standing(finding)
        if review is not None and review.decision is Decision.REJECTED:
            return f"rejected by {review.decided_by}"
        return "a person is asked"

    def outdated(self, findings: Iterable[Finding], changes: Iterable[EpisodeChange]) -> dict[str, str]:
        """Ids of open reviews that are about what is over or has changed, and why."""
        gone: dict[str, str] = {}
        for change in changes:
            if change.transition is Transition.CLOSED:
                gone |= {r.id: "it is over" for r in self._by_key.get(change.key, ()) if r.decision in _OPEN}
        for finding in findings:
            if finding.action in REVIEWED and finding.confirmed:
                present = hash_of(plan_of(finding))
                gone |= {r.id: "the plan has changed" for r in self._of(finding) if r.decision in _OPEN and r.plan_hash != present}
        return dict(sorted(gone.items()))

    def _of(self, finding: Finding) -> list[Review]:
        return self._by_key.get(finding.key, [])


def remedy(review: Review) -> str:
    """The command that decides it."""
    return f"zlh approve {review.id[-8:]}"


def _id(now: int, digest: str) -> str:
    """A UUID of version 7, from facts instead of chance: deciding knows none."""
    noise = int.from_bytes(hashlib.sha256(f"{now}/{digest}".encode()).digest()[:10])
    value = (now << 80) | noise
    value = (value & ~(0xF << 76)) | (7 << 76)
    return str(uuid.UUID(int=(value & ~(0x3 << 62)) | (0x2 << 62)))
