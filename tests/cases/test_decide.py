"""Decisions as data: each ``decide/<check>/<case>.yml`` describes a snapshot and what ``decide`` must make of it, to the last finding.

``given`` is what differs from a healthy fleet of one game server, ``fern`` (see ``tests/support/snapshots.py``). ``then`` lists ``repairs``
(``check/subject: action``), ``suppressed`` (``check/subject: reason``), ``skipped`` checks, reviews ``asked`` (``check/subject: action``) and
``withdrawn`` (``check/subject: why``): complete, absent means none. ``episodes``
(``transition check/subject reason``, with ``!`` at its end where people hear of it), ``evidence`` and ``remedy`` (by finding) are
compared where given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.decide.checks.registry import CHECKS
from flows.decide.plan import decide
from flows.domain.finding import LEVELS, EpisodeChange, Plan
from tests.support import snapshots

HERE = Path(__file__).parent / "decide"
CASES = sorted(HERE.glob("*/*.yml"))


def as_data(plan: Plan, given: Mapping[str, Any]) -> dict[str, Any]:
    """A plan as the case files write it."""
    return {
        "repairs": [f"{r.finding.key}: {r.action}" for r in plan.repairs],
        "suppressed": [f"{s.finding.key}: {s.reason}" for s in plan.suppressed],
        "skipped": sorted(plan.skipped),
        "asked": [f"{r.key}: {r.action}" for r in plan.asked],
        "withdrawn": [f"{_reviewed(given, number)}: {why}" for number, why in plan.withdrawn.items()],
    }


def _reviewed(given: Mapping[str, Any], number: str) -> str:
    review = given["reviews"][int(number.rpartition("-")[2])]
    return f"{review['check']}/{review['subject']}"


def _episode(change: EpisodeChange) -> str:
    return f"{change.transition} {change.key} {change.reason}{' !' if change.announce and not change.told else ''}"


@pytest.mark.parametrize("path", CASES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_case(path: Path) -> None:
    case: Mapping[str, Any] = yaml.safe_load(path.read_text())
    assert set(case) <= {"about", "given", "then"} and case["about"], "a case has about, given, then"
    given, then = case.get("given") or {}, case.get("then") or {}
    assert set(then) <= {"repairs", "suppressed", "skipped", "asked", "withdrawn", "episodes", "evidence", "remedy"}
    plan = decide(snapshots.snapshot(given), snapshots.policy(**given.get("policy", {})))

    assert as_data(plan, given) == {key: then.get(key) or [] for key in ("repairs", "suppressed", "skipped", "asked", "withdrawn")}
    if "episodes" in then:
        assert [_episode(c) for c in plan.changes] == then["episodes"]
    findings = {f.key: f for f in plan.findings}
    assert all(f.level <= LEVELS[f.check] for f in plan.findings), "what a level's evidence is gathered by"
    for key, wanted in then.get("evidence", {}).items():
        assert {k: findings[key].evidence.get(k) for k in wanted} == wanted
    for key, wanted in then.get("remedy", {}).items():
        assert findings[key].remedy == wanted


def test_every_check_has_its_cases() -> None:
    """A no-op and a finding for each."""
    for check in CHECKS:
        names = {p.stem for p in (HERE / check.value).glob("*.yml")}
        assert "no_op" in names and len(names) >= 3, f"{check} has only {sorted(names)}"
