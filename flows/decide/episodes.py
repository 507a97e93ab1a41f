"""Episodes: how a finding lives over time. Rows, alerts and audit lines are written on their transitions, never each minute. Pure.

::

    (new) ──OPENED──▶ open ──CHANGED──▶ open          reason or severity is another one
                       ├──ESCALATED──▶ open           a person is told, once
                       ├──RECALLED──▶ open            daily while automation still will not mend it
                       └──CLOSED                      proven over; announced if a person had been told

At most one transition per episode and sweep. ``announce`` says whether people hear of it; an announced OPENED or ESCALATED is what
``escalated_at`` remembers. Findings with a row of their own in the routing table are announced by it alone: when they are confirmed
and no incident explains them, and when their severity grows; never recalled. The stored severity is the one that was told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from flows.domain.finding import ESCALATES, OWN_ROUTE, EpisodeChange, EpisodeRow, Finding, Policy, Reason, Transition

#: Reason of an episode whose repair is ordered in this sweep.
REPAIRING = "repairing"
#: With these reasons nobody knows yet that it is a case of its own.
_HUSHED = frozenset({Reason.UNCONFIRMED.value, Reason.CORRELATED.value})
#: With these reasons its repair is tried now or soon.
_TRIED = frozenset({REPAIRING, Reason.RATE_LIMITED.value})
_ESCALATES = frozenset(r.value for r in ESCALATES)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a finding: ``reason`` is ``repairing`` or a :class:`Reason`. ``told``: somebody has announced it already. ``failing``:
    its repair goes on and keeps failing, and no breaker will tell of it. ``asked``: people are asked to approve a plan that is new to them."""

    finding: Finding
    reason: str
    told: bool = False
    failing: bool = False
    asked: bool = False


def changes(
    verdicts: Iterable[Verdict],
    open_: Mapping[str, EpisodeRow],
    now: int,
    policy: Policy,
    unproven: Callable[[EpisodeRow], str],
    told_of: Callable[[EpisodeRow], bool] = lambda episode: False,
) -> tuple[EpisodeChange, ...]:
    """Every transition of this sweep, by key. ``unproven(episode)``: why the absence of a finding does not prove it over; empty if it does.
    ``told_of(episode)``: whether people heard of it by another event, its breaker's, which its row does not say."""
    found = {v.finding.key: v for v in verdicts}
    result: list[EpisodeChange] = []
    for key in sorted({*found, *open_}):
        verdict, episode = found.get(key), open_.get(key)
        if verdict is not None:
            change = _opened(verdict) if episode is None else _lasting(verdict, episode, now, policy)
        else:
            assert episode is not None
            change = None if unproven(episode) else _closed(key, episode, told=episode.escalated_at is not None or told_of(episode))
        if change is not None:
            result.append(change)
    return tuple(result)


def _opened(verdict: Verdict) -> EpisodeChange:
    return _change(Transition.OPENED, verdict, None, announce=_to_tell(verdict))


def _lasting(verdict: Verdict, episode: EpisodeRow, now: int, policy: Policy) -> EpisodeChange | None:
    if verdict.reason in _HUSHED and verdict.finding.severity > episode.severity:
        # Stored, it would look told. It grows once it is a case of its own again.
        verdict = replace(verdict, finding=replace(verdict.finding, severity=episode.severity))
    finding = verdict.finding
    if episode.escalated_at is None:
        if _to_tell(verdict):
            return _change(Transition.ESCALATED, verdict, episode, announce=True)
    elif finding.check in OWN_ROUTE:
        if finding.severity > episode.severity:
            return _change(Transition.CHANGED, verdict, episode, announce=True)
    elif verdict.asked:
        return _change(Transition.CHANGED, verdict, episode, announce=True)
    elif _needs_a_person(verdict) and now - max(episode.escalated_at, episode.recalled_at or 0) >= policy.recall_ms:
        return _change(Transition.RECALLED, verdict, episode, announce=True)
    renewed = verdict.reason == Reason.AWAITING_REVIEW and finding.remedy != episode.remedy
    if verdict.reason != episode.reason or finding.severity != episode.severity or renewed:
        return _change(Transition.CHANGED, verdict, episode)
    return None


def _to_tell(verdict: Verdict) -> bool:
    if verdict.finding.check in OWN_ROUTE:
        return verdict.reason not in _HUSHED
    return _needs_a_person(verdict)


def _needs_a_person(verdict: Verdict) -> bool:
    return verdict.reason in _ESCALATES or (verdict.failing and verdict.reason in _TRIED)


def _closed(key: str, episode: EpisodeRow, *, told: bool) -> EpisodeChange:
    return EpisodeChange(Transition.CLOSED, key, None, episode, "gone", announce=told)


def _change(transition: Transition, verdict: Verdict, episode: EpisodeRow | None, *, announce: bool = False) -> EpisodeChange:
    return EpisodeChange(transition, verdict.finding.key, verdict.finding, episode, verdict.reason, announce, announce and verdict.told)
