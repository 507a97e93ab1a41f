"""Every check has been seen in every way in which it can end, in a scenario: the table in ``README.md`` says where, and which cells cannot exist.

A reason for leaving a finding alone is seen where a golden log says it, and a repair that heals where a log tells of one. What a log cannot
tell by one line (a source that was unknown, a source that lied, a death in the middle) is what a scenario's name, or its ``shows``, says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from flows.decide.checks.registry import CHECKS
from flows.domain.finding import Check, Reason

HERE = Path(__file__).parent
SCENARIOS = HERE / "scenarios"
NAMED = ("source_unknown", "source_lying", "death_in_the_middle")
KINDS = ("healed", *(reason.value for reason in Reason), *NAMED)
_FINDING = re.compile(r"^\S+ finding ([a-z_]+)/(\S+): (\w+)$")

_REPORTS = frozenset({Check.QUEUE_STALLED, Check.BACKUP_MISSED, Check.LEASE_ABANDONED, Check.DUPLICATE_VMID, Check.HOST_DOWN, Check.SOURCE_UNKNOWN})
_OF_OPERATIONS = frozenset({Check.OPERATION_ORPHANED, Check.OPERATION_UNSUBMITTED, Check.STUCK_PROVISIONING, Check.CLEANUP_REQUIRED})
_WITHDRAWN = frozenset({Check.DNS_STALE_RECORD, Check.PROXY_STALE_REGISTRATION})
_REVIEWED = frozenset({Check.WORKLOAD_ERROR, Check.CONTAINER_MISSING, Check.CONTAINER_ORPHANED})
_WITHOUT_SERVER = frozenset({Check.SOURCE_DRIFT, Check.CONTAINER_ORPHANED})
_SURE_AT_ONCE = frozenset(Check) - {
    Check.OPERATION_ORPHANED, Check.DNS_STALE_RECORD, Check.PROXY_STALE_REGISTRATION, Check.AGENT_OFFLINE, Check.WORKLOAD_STOPPED,
    Check.CONTAINER_ORPHANED, Check.DUPLICATE_VMID, Check.HOST_DOWN,
}  # fmt: skip
_NOWHERE = frozenset({Check.QUEUE_STALLED, Check.SOURCE_UNKNOWN, Check.DUPLICATE_VMID})
_INCIDENTS = frozenset({Check.HOST_DOWN, Check.SOURCE_DRIFT})
_WITHOUT_REPAIR = _REPORTS | {Check.AGENT_OFFLINE, Check.CLEANUP_REQUIRED, Check.SOURCE_DRIFT}
_DATABASE_ALONE = frozenset({Check.STUCK_PROVISIONING, Check.CLEANUP_REQUIRED, Check.QUEUE_STALLED, Check.BACKUP_MISSED, Check.LEASE_ABANDONED})

#: Kind → the checks for which it cannot exist, and why; the first reason that names a check counts.
IMPOSSIBLE: Mapping[str, tuple[tuple[frozenset[Check], str], ...]] = {
    "healed": ((frozenset({Check.CONTAINER_MISSING}), "there is no flow that restores a backup yet"),),
    "paused": ((_REPORTS, "it only reports"),),
    "locked": (
        (_REPORTS, "it only reports"),
        (frozenset({Check.OPERATION_ORPHANED}), "its own expired lease stands where another's would"),
    ),
    "operation_running": (
        (_REPORTS, "it only reports"),
        (_WITHOUT_SERVER, "no server, so no operation of one"),
        (_OF_OPERATIONS - {Check.CLEANUP_REQUIRED}, "it is about the operation itself"),
        (frozenset({Check.CLEANUP_REQUIRED}), "the run that fails to undo ends its lease in the same transaction"),
    ),
    "unconfirmed": ((_SURE_AT_ONCE, "one look is proof"),),
    "correlated": ((_INCIDENTS, "it is an incident itself"), (_NOWHERE, "it is on no host")),
    "level_disabled": ((_REPORTS, "it only reports"),),
    "breaker_open": (
        (_REPORTS, "it only reports"),
        (_OF_OPERATIONS, "the operation's own attempts count"),
        (_WITHDRAWN, "withdrawals neither count nor are blocked"),
    ),
    "rate_limited": ((_REPORTS, "it only reports"), (frozenset({Check.CONTAINER_MISSING}), "nothing approves a restore yet")),
    "awaiting_review": ((frozenset(Check) - _REVIEWED, "nobody is asked"),),
    "no_repair": ((frozenset(Check) - _WITHOUT_REPAIR, "each of its findings has a repair"),),
    "source_unknown": ((_DATABASE_ALONE, "it reads the database alone, without which there is no sweep: every_check-database_away"),),
    "source_lying": ((_DATABASE_ALONE, "it reads the database alone"),),
    "death_in_the_middle": ((_REPORTS, "it does nothing"), (frozenset({Check.CONTAINER_MISSING}), "it does nothing yet")),
}


def impossible(check: Check, kind: str) -> str:
    """Why there is no such cell; empty if there is."""
    return next((why for checks, why in IMPOSSIBLE[kind] if check in checks), "")


def shown() -> dict[tuple[Check, str], set[str]]:
    """Cell → the scenarios that show it."""
    found: dict[tuple[Check, str], set[str]] = {}
    for path in sorted(SCENARIOS.glob("*/events.yml")):
        name = path.parent.name
        log = path.with_name("expected.log").read_text(encoding="utf-8")
        said = yaml.safe_load(path.read_text(encoding="utf-8")).get("shows", ())
        for cell in [*_named(name, *said), *_told(log)]:
            found.setdefault(cell, set()).add(name)
    return found


def _named(*names: str) -> Iterator[tuple[Check, str]]:
    for name in names:
        check, _, kind = name.partition("-")
        if check in set(Check) and kind in NAMED:
            yield Check(check), kind


def _told(log: str) -> Iterator[tuple[Check, str]]:
    repairing: set[str] = set()
    for match in filter(None, map(_FINDING.match, log.splitlines())):
        check, key, reason = Check(match[1]), f"{match[1]}/{match[2]}", match[3]
        if reason in set(Reason):
            yield check, reason
        elif reason == "repairing":
            repairing.add(key)
        elif reason == "over" and (key in repairing or check in _REPORTS):
            yield check, "healed"


def table() -> str:
    """For ``README.md``: a row per check; a number of scenarios, or the letter of why not."""
    found = shown()
    reasons = list(dict.fromkeys(why for rows in IMPOSSIBLE.values() for _, why in rows))
    letter = {why: chr(ord("a") + n) for n, why in enumerate(reasons)}
    lines = [f"| check | {' | '.join(kind.replace('_', ' ') for kind in KINDS)} |", f"| --- |{' --- |' * len(KINDS)}"]
    for check in CHECKS:
        cells = [letter.get(impossible(check, kind)) or str(len(found.get((check, kind), ()))) for kind in KINDS]
        lines.append(f"| `{check}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{letter[why]}: {why}." + ("  " if why != reasons[-1] else "") for why in reasons)])


def test_every_cell_that_can_exist_is_shown() -> None:
    found = shown()
    missing = [f"{check}-{kind}" for check in CHECKS for kind in KINDS if not impossible(check, kind) and (check, kind) not in found]
    assert not missing


def test_no_cell_that_cannot_exist_is_shown() -> None:
    """Else its reason is wrong."""
    wrong = {f"{check}-{kind}": sorted(names) for (check, kind), names in shown().items() if impossible(check, kind)}
    assert not wrong


def test_what_a_scenario_says_it_shows_is_in_its_log() -> None:
    for path in SCENARIOS.glob("*/events.yml"):
        for cell in yaml.safe_load(path.read_text(encoding="utf-8")).get("shows", ()):
            assert list(_named(cell)), f"{path}: {cell} is no cell that a scenario must name"


def test_there_are_sixty_scenarios() -> None:
    assert len(list(SCENARIOS.glob("*/events.yml"))) >= 60


def test_the_readme_says_so() -> None:
    """``SCENARIOS_ACCEPT=1`` writes it."""
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, mark, rest = text.partition("<!-- matrix -->\n")
    after = rest.partition("<!-- end -->")[2]
    now = f"{before}{mark}\n{table()}\n\n<!-- end -->{after}"
    if os.environ.get("SCENARIOS_ACCEPT") and mark:
        readme.write_text(now, encoding="utf-8")
        text = now
    assert mark
    assert text == now
