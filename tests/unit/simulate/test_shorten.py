"""A long schedule becomes the few faults that matter."""

from __future__ import annotations

from collections.abc import Sequence

from flows.simulate.plan import Fault, planned
from flows.simulate.shorten import shorten


def test_finds_the_two_that_matter() -> None:
    everything = planned(3, 12, 6, "dense")
    first, second = everything[7], everything[31]

    def fails(candidate: Sequence[Fault]) -> bool:
        return {(f.at, f.kind) for f in (first, second)} <= {(f.at, f.kind) for f in candidate}

    done = shorten(everything, everything[-1].at, fails)
    assert [(f.at, f.kind) for f in done.faults] == [(first.at, first.kind), (second.at, second.kind)]
    assert done.replays <= 120


def test_shortens_durations_and_names_boundaries() -> None:
    fault = Fault(100.0, "pause", "sweep", 160.0, "57")

    def fails(candidate: Sequence[Fault]) -> bool:
        return bool(candidate) and candidate[0].duration >= 35 and (candidate[0].arg in ("57", "wire:dns:"))

    done = shorten([fault, Fault(120.0, "flush")], 300.0, fails)
    assert done.faults == [Fault(100.0, "pause", "sweep", 40.0, "wire:dns:")]


def test_what_fails_without_any_fault_needs_none() -> None:
    assert shorten([Fault(1.0, "flush"), Fault(2.0, "twin")], 10.0, lambda candidate: True).faults == []


def test_a_plan_depends_on_its_seed_alone() -> None:
    assert planned(5, 12, 6, "dense") == planned(5, 12, 6, "dense")
    assert planned(5, 12, 6, "dense") != planned(6, 12, 6, "dense")
    assert planned(5, 12, 1, "dense") == []
