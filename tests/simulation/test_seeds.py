"""Seeds hold every invariant; each mutant is caught by its own; the same seed gives the same trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.simulate import running
from flows.simulate.invariants.registry import INVARIANTS
from flows.simulate.mutants import MUTANTS
from flows.simulate.simulation import Order, directory

JOBS = os.cpu_count() or 2
#: Where mutants are looked for: enough meets within these hours, and a violation ends the run.
HUNT = Order(servers=12, hours=4, profile="dense")


def test_each_invariant_has_a_mutant() -> None:
    assert {mutant.caught_by for mutant in MUTANTS.values()} == set(INVARIANTS)


@pytest.mark.timeout(170)
def test_the_trace_does_not_depend_on_the_hash_seed() -> None:
    order = {"order": {"seed": 4, "servers": 12, "hours": 2.4, "profile": "dense"}, "faults": None, "mutant": "", "log": False}
    traces = set()
    with directory() as home:
        for hash_seed in ("0", "4711"):
            done = subprocess.run(
                [sys.executable, "-m", "flows.simulate", str(home)], input=json.dumps(order), capture_output=True, text=True, check=True,
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
            )  # fmt: skip
            result = json.loads(done.stdout)
            assert not result["error"]
            traces.add(result["trace"])
    assert len(traces) == 1


@pytest.mark.timeout(600)
def test_thirty_seeds_are_clean() -> None:
    found = [r for r in running.many(range(1, 31), Order(hours=3, profile="dense"), jobs=JOBS) if r.status]
    assert not found, "\n".join(f"{r.order} {r.violation} {r.error}" for r in found)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_mutants_are_caught(mutant: str) -> None:
    """On three seeds that are known to find it: the first ones that do, of the twenty in ``mutants.json``."""
    seeds = json.loads((Path(__file__).parent / "mutants.json").read_text())[mutant]
    assert running.catches(mutant, seeds[:3], HUNT, jobs=JOBS) is not None, f"not caught by {MUTANTS[mutant].caught_by} on seeds {seeds[:3]}"


@pytest.mark.timeout(300)
def test_a_violation_is_shortened_and_replays(tmp_path: Path) -> None:
    seed = json.loads((Path(__file__).parent / "mutants.json").read_text())["pause_ignored"][0]
    result = running.one(Order(seed, HUNT.servers, HUNT.hours, HUNT.profile), mutant="pause_ignored")
    assert result.violation is not None
    assert result.script is not None
    assert 1 <= len(result.script) <= 4
    script = tmp_path / "script.jsonl"
    running.plan.save(script, {**result.order, "break": "pause_ignored"}, [running.Fault(**fault) for fault in result.script])
    again = running.one(Order(), replay=script, shortened=False)
    assert again.violation is not None
    assert again.violation["invariant"] == result.violation["invariant"]


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_a_thousand_seeds() -> None:
    found = [r for r in running.many(range(1, 1001), Order(servers=12, hours=6, profile="dense"), jobs=JOBS) if r.status]
    assert not found, "\n".join(f"{r.order} {r.violation} {r.error}" for r in found)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_a_hundred_days() -> None:
    found = [r for r in running.many(range(1, 101), Order(servers=50, hours=24), jobs=JOBS) if r.status]
    assert not found, "\n".join(f"{r.order} {r.violation} {r.error}" for r in found)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_mutants_are_caught_within_twenty_seeds(mutant: str) -> None:
    assert running.catches(mutant, range(1, 21), HUNT, jobs=JOBS) is not None


@pytest.mark.soak
@pytest.mark.timeout(45 * 60)
def test_a_month() -> None:
    result = running.one(Order(servers=200, hours=720, profile="realistic"), shortened=False)
    assert result.violation is None, result.violation
    assert not result.error
    assert result.autonomy is not None
    assert not result.autonomy["wrong repairs"]
