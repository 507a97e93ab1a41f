"""Every invariant, in the order of the specification's table."""

from __future__ import annotations

from collections.abc import Mapping

from flows.simulate.invariants.alerted import Alerted
from flows.simulate.invariants.attempt_limit import AttemptLimit
from flows.simulate.invariants.base import Invariant
from flows.simulate.invariants.converges import Converges
from flows.simulate.invariants.edge_truth import EdgeTruth
from flows.simulate.invariants.explained import Explained
from flows.simulate.invariants.known_only import KnownOnly
from flows.simulate.invariants.level_respected import LevelRespected
from flows.simulate.invariants.lock_respected import LockRespected
from flows.simulate.invariants.no_double_effect import NoDoubleEffect
from flows.simulate.invariants.vmid_unique import VmidUnique

INVARIANTS: Mapping[str, type[Invariant]] = {
    i.name: i
    for i in (
        VmidUnique, AttemptLimit, LockRespected, NoDoubleEffect, LevelRespected, Converges, Alerted, KnownOnly, Explained, EdgeTruth,
    )
}  # fmt: skip
