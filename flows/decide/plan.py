"""``decide(snapshot, policy) -> Plan``: what one sweep does, in order, and what it leaves alone and why. Pure: no clock, no I/O, no chance.

Called by the sweep, by ``zlh explain`` and by dry runs. Promises: every finding ends as exactly one repair or one suppression; nothing is
derived from an unknown source; the same facts give the same plan, in whatever order they were listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flows.decide import episodes, limits, places, reviews
from flows.decide.breakers import Breakers
from flows.decide.checks import source_drift
from flows.decide.checks.registry import CHECKS
from flows.decide.correlation import Correlation
from flows.decide.reviews import Desk
from flows.decide.verdict import Judge
from flows.domain.finding import NOT_YET, REVIEWED, Check, EpisodeChange, EpisodeRow, Finding, Plan, Policy, Reason, Repair, Review, Suppressed
from flows.domain.snapshot import Snapshot


def decide(snapshot: Snapshot, policy: Policy) -> Plan:
    """The plan for this snapshot. ``snapshot.now`` is the only clock."""
    findings, skipped = find(snapshot, policy)
    open_ = {e.key: e for e in snapshot.fleet.episodes.values()}
    breakers = Breakers(snapshot.fleet, policy, snapshot.now)
    desk = Desk(snapshot, policy)
    judge = Judge(snapshot, policy, breakers, Correlation(findings), desk)

    eligible: list[Finding] = []
    suppressed: list[Suppressed] = []
    for finding in findings:
        verdict = judge.suppression(finding)
        if verdict is None:
            eligible.append(finding)
        else:
            suppressed.append(verdict)

    waits = limits.select(eligible, snapshot.fleet.repairs, {k: e.opened_at for k, e in open_.items()}, policy)
    repairs: list[Repair] = []
    for finding in sorted(eligible, key=limits.place):
        if waits[finding.key]:
            suppressed.append(Suppressed(finding, Reason.RATE_LIMITED, waits[finding.key]))
        else:
            assert finding.action is not None
            approval = desk.approval(finding) if finding.action in REVIEWED else None
            repairs.append(Repair(finding, finding.action, approval.id if approval else None))
    suppressed, asked, news = _asked(sorted(suppressed, key=lambda s: s.finding.key), desk, open_)

    verdicts = [episodes.Verdict(r.finding, episodes.REPAIRING, failing=breakers.failing(r.finding)) for r in repairs]
    for s in suppressed:
        episode = open_.get(s.finding.key)
        told = s.reason is Reason.BREAKER_OPEN and breakers.announced(s.finding, episode.id if episode else None)
        verdicts.append(episodes.Verdict(s.finding, s.reason.value, told, breakers.failing(s.finding), s.finding.key in news))
    changes = episodes.changes(verdicts, open_, snapshot.now, policy, lambda e: unproven(snapshot, policy, e, skipped), breakers.told_of)
    withdrawn = desk.outdated(findings, changes)
    return Plan(tuple(repairs), tuple(suppressed), tuple(_placed(change, snapshot) for change in changes), skipped, asked, withdrawn)


def _asked(suppressed: list[Suppressed], desk: Desk, open_: Mapping[str, EpisodeRow]) -> tuple[list[Suppressed], tuple[Review, ...], frozenset[str]]:
    """The suppressions, those that await a decision with its command; reviews to be requested; and keys of findings whose plan people are to
    hear of."""
    asked: list[Review] = []
    news: set[str] = set()
    for index, rest in enumerate(suppressed):
        if rest.reason is not Reason.AWAITING_REVIEW:
            continue
        review = desk.standing(rest.finding)
        if review is None:
            review = desk.request(rest.finding)
            asked.append(review)
        if review.decision is None and desk.news(rest.finding, review, _told_at(open_.get(rest.finding.key))):
            news.add(rest.finding.key)
        if review.decision is None and review.action not in NOT_YET:
            suppressed[index] = replace(rest, finding=replace(rest.finding, remedy=reviews.remedy(review)))
    return suppressed, tuple(asked), frozenset(news)


def _told_at(episode: EpisodeRow | None) -> int | None:
    return None if episode is None or episode.escalated_at is None else max(episode.escalated_at, episode.recalled_at or 0)


def find(snapshot: Snapshot, policy: Policy) -> tuple[list[Finding], dict[str, str]]:
    """Every finding, by key, and the checks that could not run, with the reason. Incidents of whole sources included."""
    found: dict[str, Finding] = {}
    skipped: dict[str, str] = {}
    for check, spec in CHECKS.items():
        if check is Check.SOURCE_DRIFT:
            continue
        why = spec.skipped(snapshot)
        if why:
            skipped[check.value] = why
            continue
        for finding in spec.find(snapshot, policy):
            found.setdefault(finding.key, finding)
    for finding in source_drift.among(list(found.values()), snapshot, policy):
        found[finding.key] = finding
    fleet = snapshot.fleet
    return [replace(f, where=places.where(fleet, f.subject, f.server_id, f.host)) for _, f in sorted(found.items())], skipped


def _placed(change: EpisodeChange, snapshot: Snapshot) -> EpisodeChange:
    """A close has no finding: its episode says where it was."""
    if change.finding is not None or change.episode is None:
        return replace(change, where=change.finding.where if change.finding else "")
    return replace(change, where=places.where(snapshot.fleet, change.episode.subject, change.episode.server_id, None))


def unproven(snapshot: Snapshot, policy: Policy, episode: EpisodeRow, skipped: dict[str, str]) -> str:
    """Why an episode without a finding is not over; empty if it is."""
    return skipped.get(episode.check.value, "") or CHECKS[episode.check].unproven(snapshot, policy, episode.subject)
