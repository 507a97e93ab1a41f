"""Transitions of episodes, apart from the checks."""

from __future__ import annotations

from typing import Any

from flows.decide.episodes import REPAIRING, Verdict, changes
from flows.domain.finding import Check, EpisodeChange, EpisodeRow, Finding, Transition
from tests.support.snapshots import NOW, POLICY

DAY = 86_400_000


def _finding(check: Check = Check.DNS_RECORD, severity: int = 1) -> Finding:
    return Finding(check, "fern", "summary", 1, severity=severity)


def _row(check: Check = Check.DNS_RECORD, **fields: Any) -> EpisodeRow:
    return EpisodeRow("e1", check, "fern", NOW - 2 * DAY, NOW - 60_000, **{"reason": REPAIRING, **fields})


def _one(verdict: Verdict | None, row: EpisodeRow | None, unproven: str = "") -> EpisodeChange | None:
    found = changes([verdict] if verdict else [], {row.key: row} if row else {}, NOW, POLICY, lambda _: unproven)
    assert len(found) <= 1
    return found[0] if found else None


def _said(change: EpisodeChange | None) -> tuple[Transition, bool, bool] | None:
    return (change.transition, change.announce, change.told) if change else None


def test_opening() -> None:
    assert _said(_one(Verdict(_finding(), REPAIRING), None)) == (Transition.OPENED, False, False)
    assert _said(_one(Verdict(_finding(), "no_repair"), None)) == (Transition.OPENED, True, False)


def test_a_breaker_that_was_announced_is_not_announced_again() -> None:
    assert _said(_one(Verdict(_finding(), "breaker_open", told=True), _row())) == (Transition.ESCALATED, True, True)


def test_escalated_once() -> None:
    assert _said(_one(Verdict(_finding(), "level_disabled"), _row())) == (Transition.ESCALATED, True, False)
    assert _one(Verdict(_finding(), "level_disabled"), _row(reason="level_disabled", escalated_at=NOW - 1)) is None


def test_another_reason_of_an_escalated_episode_is_a_quiet_change() -> None:
    row = _row(reason="level_disabled", escalated_at=NOW - 1)
    assert _said(_one(Verdict(_finding(), "breaker_open"), row)) == (Transition.CHANGED, False, False)
    assert _said(_one(Verdict(_finding(), REPAIRING), row)) == (Transition.CHANGED, False, False)


def test_recalled_daily_from_the_last_word() -> None:
    told = _row(reason="no_repair", escalated_at=NOW - DAY)
    assert _said(_one(Verdict(_finding(), "no_repair"), told)) == (Transition.RECALLED, True, False)
    assert _one(Verdict(_finding(), "no_repair"), _row(reason="no_repair", escalated_at=NOW - DAY, recalled_at=NOW - DAY + 1)) is None


def test_an_escalated_episode_that_is_being_repaired_is_not_recalled() -> None:
    assert _one(Verdict(_finding(), REPAIRING), _row(escalated_at=NOW - 9 * DAY)) is None


def test_a_row_of_its_own_is_never_recalled_and_grows_with_severity() -> None:
    check = Check.BACKUP_MISSED
    told = _row(check, reason="no_repair", escalated_at=NOW - 9 * DAY)
    assert _one(Verdict(_finding(check), "no_repair"), told) is None
    assert _said(_one(Verdict(_finding(check, severity=2), "no_repair"), told)) == (Transition.CHANGED, True, False)


def test_a_severity_that_grows_while_an_incident_explains_it_is_not_stored_before_it_is_told() -> None:
    check = Check.BACKUP_MISSED
    told = _row(check, reason="no_repair", escalated_at=NOW - 9 * DAY)
    hushed = _one(Verdict(_finding(check, severity=2), "correlated"), told)
    assert _said(hushed) == (Transition.CHANGED, False, False)
    assert hushed is not None and hushed.finding is not None and hushed.finding.severity == 1
    stays = _row(check, reason="correlated", escalated_at=NOW - 9 * DAY)
    assert _one(Verdict(_finding(check, severity=2), "correlated"), stays) is None
    after = _one(Verdict(_finding(check, severity=2), "no_repair"), stays)
    assert _said(after) == (Transition.CHANGED, True, False)
    assert after is not None and after.finding is not None and after.finding.severity == 2


def test_closing() -> None:
    assert _said(_one(None, _row())) == (Transition.CLOSED, False, False)
    assert _said(_one(None, _row(escalated_at=NOW - 1))) == (Transition.CLOSED, True, False)
    assert _one(None, _row(escalated_at=NOW - 1), unproven="readiness unknown") is None
