"""What is known of a repair level before it is allowed: the last 30 days, by check. Shown by ``zlh repair-level set``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from flows.cli import output, session
from flows.domain.finding import LEVELS, Outcome, Reason
from flows.state.quick import Query, Rows

#: How far back it goes, ms: 30 days.
WINDOW_MS = 30 * 86_400_000
_FAILED = frozenset({Outcome.FAILED.value, Outcome.UNVERIFIED.value})


def of(present: int, wanted: int) -> list[dict[str, Any]]:
    """Per check of the levels that would be added: how often the level alone stood in the way, on how many servers, how many of those ended
    by themselves and how fast; and the repairs done and failed while the level was allowed before."""
    if wanted <= present:
        return []
    checks = {check.value: level for check, level in LEVELS.items() if present < level <= wanted}
    held, _ = session.rows(_held)
    repairs, _ = session.rows(_repairs)
    return [_fact(level, check, held, repairs) for check, level in sorted(checks.items(), key=lambda item: (item[1], item[0]))]


def _fact(level: int, check: str, held: Rows, repairs: Rows) -> dict[str, Any]:
    mine = [row for row in held if row["check"] == check]
    over = [row["closed_at"] - row["opened_at"] for row in mine if row["closed_at"] is not None]
    outcomes = Counter({row["outcome"] or "under_way": int(row["n"]) for row in repairs if row["check"] == check and row["level"] == level})
    return {
        "level": level,
        "check": check,
        "would_have_acted": len(mine),
        "subjects": len({row["subject"] for row in mine}),
        "ended_by_itself": len(over),
        "median_ms": int(median(over)) if over else None,
        "done": outcomes[Outcome.REPAIRED.value],
        "failed": sum(outcomes[name] for name in _FAILED),
        "outcomes": dict(sorted(outcomes.items())),
    }


def lines(facts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """As a person reads it, before the question."""
    for level in sorted({fact["level"] for fact in facts}):
        here = [fact for fact in facts if fact["level"] == level]
        known = [fact for fact in here if fact["would_have_acted"] or fact["outcomes"]]
        yield f"level {level}, the last 30 days:"
        for fact in known:
            yield f"  {fact['check']:<26}{_would(fact)} · {_did(fact)}"
        rest = ", ".join(fact["check"] for fact in here if fact not in known)
        if rest:
            yield f"  nothing is known here of {rest}"


def _would(fact: Mapping[str, Any]) -> str:
    times = fact["would_have_acted"]
    if not times:
        return "would not have acted"
    by_itself = f", {fact['ended_by_itself']} ended without it" if fact["ended_by_itself"] else ""
    after = f" after {output.duration(fact['median_ms'])}" if fact["median_ms"] is not None else ""
    return f"would have acted {times} times on {fact['subjects']}{by_itself}{after}"


def _did(fact: Mapping[str, Any]) -> str:
    if not fact["outcomes"]:
        return "no repairs"
    rest = {k: n for k, n in fact["outcomes"].items() if k not in {Outcome.REPAIRED.value, *_FAILED}}
    return f"{fact['done']} repaired, {fact['failed']} failed" + "".join(f", {n} {k.replace('_', ' ')}" for k, n in rest.items())


def _held(now: int) -> Query:
    return Query(
        """SELECT e."check", e.subject, e.opened_at, e.closed_at FROM episodes e
           WHERE e.reason = :reason AND (e.closed_at IS NULL OR e.closed_at > :since)""",
        {"reason": Reason.LEVEL_DISABLED.value, "since": now - WINDOW_MS},
    )


def _repairs(now: int) -> Query:
    return Query(
        """SELECT r.level, r."check", r.outcome, COUNT(*) AS n FROM repairs r WHERE r.intent_at > :since GROUP BY r.level, r."check", r.outcome""",
        {"since": now - WINDOW_MS},
    )
