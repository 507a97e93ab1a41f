"""What invariants count and forget, judged apart from a simulation: no script meets these moments at will."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.act.sweep import SweepResult
from flows.domain.finding import Action, Check, Finding, Plan, Reason, Repair, Suppressed
from flows.simulate.invariants.base import Violation
from flows.simulate.invariants.converges import SWEEPS, Converges
from flows.simulate.invariants.no_double_effect import NoDoubleEffect
from flows.simulate.loop import Process

FINDING = Finding(Check.DNS_RECORD, "server-1", "no record", 1, Action.PUBLISH_DNS, server_id="server-1")
SUPERSEDED = SweepResult("superseded")


def _raise(violation: Violation) -> None:
    raise violation


def _scene(**ledger: Any) -> Any:
    faults = SimpleNamespace(ended=0.0, active={})
    return SimpleNamespace(world=None, ledger=SimpleNamespace(**ledger), faults=faults, now=1000.0, broken=_raise)


def _planned(*, repaired: bool = True, held: Reason | None = None) -> SweepResult:
    repairs = (Repair(FINDING, Action.PUBLISH_DNS),) if repaired and held is None else ()
    suppressed = (Suppressed(FINDING, held),) if held is not None else ()
    return SweepResult("findings", 1, Plan(repairs, suppressed, ()))


@pytest.fixture
def sweep() -> Process:
    made = Process("sweep1@c1", "c1", "sweep", 0.0)
    made.holder = "c1:1:sweep"
    return made


@pytest.mark.parametrize("between", [SUPERSEDED, None, _planned(held=Reason.LOCKED)])
def test_a_sweep_that_says_nothing_of_a_finding_does_not_make_it_younger(sweep: Process, between: SweepResult | None) -> None:
    converges = Converges(_scene())
    for _ in range(SWEEPS):
        converges.swept(sweep, _planned())
        converges.swept(sweep, between)
    with pytest.raises(Violation, match="still there after 6 sweeps"):
        converges.swept(sweep, _planned())


def test_a_finding_that_went_begins_anew(sweep: Process) -> None:
    converges = Converges(_scene())
    for _ in range(2 * SWEEPS):
        converges.swept(sweep, _planned())
        converges.swept(sweep, _planned(repaired=False))


def _after(sweep: Process, **ledger: Any) -> None:
    """The sweep of epoch 7 commits under epoch 8."""
    sweep.told["epoch"] = 7
    known = {"epoch": (8, "c2:1:sweep"), "fresh": [], "closed": [], "taken": {}, "leases": {}} | ledger
    NoDoubleEffect(_scene(**known)).committed(sweep, frozenset({"repairs", "audit", "leases"}))


def _intent(epoch: int, outcome: str | None) -> Any:
    return SimpleNamespace(epoch=epoch, outcome=outcome, action="publish_dns", subject="server-1")


def test_a_superseded_sweep_begins_nothing(sweep: Process) -> None:
    with pytest.raises(Violation, match="began publish_dns of server-1 for epoch 7 under epoch 8"):
        _after(sweep, fresh=[_intent(7, None)])


def test_a_superseded_sweep_ends_what_it_began_as_fenced_alone(sweep: Process) -> None:
    _after(sweep, closed=[_intent(7, "fenced")])
    with pytest.raises(Violation, match="as repaired"):
        _after(sweep, closed=[_intent(7, "repaired")])


def test_a_superseded_sweep_renews_its_lease_and_takes_none(sweep: Process) -> None:
    own = {"server-1": SimpleNamespace(holder=sweep.holder)}
    _after(sweep, taken={"server-1": 900.0}, leases=own)
    with pytest.raises(Violation, match="took the lease of server-1"):
        _after(sweep, taken={"server-1": 1000.0}, leases=own)
