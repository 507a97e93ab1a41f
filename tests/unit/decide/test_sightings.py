"""What a sweep remembers for the next: observations, sightings, how sources answered."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flows.decide.plan import decide
from flows.decide.sightings import observations, sightings, sources
from flows.domain.agent import WorkloadState
from flows.domain.known import Unknown
from flows.domain.snapshot import SourceFact
from tests.support import snapshots
from tests.support.snapshots import NOW, POLICY, snapshot


def test_an_answer_resets_both_counts() -> None:
    (seen,) = observations(snapshot(servers={"fern": {"misses": 4, "unready": 3}}))
    assert (seen.at, seen.reachable, seen.ready, seen.misses, seen.unready) == (NOW, True, True, 0, 0)


def test_not_ready_is_counted() -> None:
    (seen,) = observations(snapshot(servers={"fern": {"agent": "not_ready", "unready": 1}}))
    assert (seen.ready, seen.unready, seen.misses) == (False, 2, 0)


def test_silence_is_unknown_not_unready() -> None:
    (seen,) = observations(snapshot(servers={"fern": {"agent": "silent", "misses": 1, "unready": 1}}))
    assert (seen.reachable, seen.ready, seen.state, seen.misses, seen.unready) == (False, None, None, 2, 1)
    assert seen.reason == "connect timed out after 3 s"


def test_a_distrusted_answer_is_no_answer() -> None:
    (seen,) = observations(snapshot(servers={"fern": {"agent": "distrusted"}}))
    assert (seen.reachable, seen.ready, seen.misses) == (False, None, 1)


def test_a_stopped_container_is_proof_of_not_ready() -> None:
    for agent in ("silent", "unasked"):
        (seen,) = observations(snapshot(servers={"fern": {"agent": agent, "container": "stopped", "misses": 3}}))
        assert (seen.ready, seen.state, seen.unready, seen.misses) == (False, WorkloadState.STOPPED, 1, 0)


def test_no_proof_from_a_doubtful_proxmox() -> None:
    fern = {"fern": {"agent": "silent", "container": "stopped", "vmid": 10_050}}
    for doubt in ({"unknown": {"proxmox": "no quorum"}}, {"duplicate_vmids": [10_050]}):
        (seen,) = observations(snapshot(servers=fern, **doubt))
        assert seen.ready is None


def test_nothing_is_stored_of_a_server_that_was_not_asked() -> None:
    assert observations(snapshot(servers={"fern": {"agent": "unasked"}}, observations={"fern": {"at": "-1m"}})) == ()


def test_who_was_not_asked_missed_nothing() -> None:
    """No answer was missed: what was stored before stays as it was, its time included."""
    world = snapshot(unknown={"agents": "our certificate has expired"}, servers={"fern": {"misses": 1}, "moss": {}})
    (seen,) = observations(world)
    assert (seen, seen.misses) == (world.fleet.observations["fern"], 1)


def test_long_reasons_fit_their_column() -> None:
    world = snapshot(servers={"fern": {"agent": "silent"}})
    (seen,) = observations(dataclasses.replace(world, agents={"fern": Unknown("x" * 999)}))
    assert len(seen.reason) == 255


def test_sightings_count_up_to_confirmation_and_forget_what_is_gone() -> None:
    ghost = {"registrations": {"ghost": "10.9.9.9:25565"}}
    assert sightings(snapshot(ghost), POLICY) == {"proxy:ghost": 1}
    assert sightings(snapshot(ghost, sightings={"proxy:ghost": 1}), POLICY) == {"proxy:ghost": 2}
    assert sightings(snapshot(ghost, sightings={"proxy:ghost": 2}), POLICY) == {"proxy:ghost": 2}
    assert sightings(snapshot(sightings={"proxy:ghost": 2, "dns:a.play.example": 1}), POLICY) == {}


def test_an_unknown_source_neither_adds_nor_resets() -> None:
    before = {"proxy:ghost": 1, "dns:a.play.example": 1}
    assert sightings(snapshot(unknown={"proxy": "x"}, sightings=before), POLICY) == {"proxy:ghost": 1}
    assert sightings(snapshot(unknown={"dns": "x"}, sightings=before), POLICY) == {"dns:a.play.example": 1}


def test_suspended_entries_need_no_sighting() -> None:
    assert sightings(snapshot(servers={"fern": {"state": "suspended", "registered": True, "published": True}}), POLICY) == {}


def test_sources_count_misses_and_keep_since() -> None:
    facts = {f.source: f for f in sources(snapshot(unknown={"dns": "REFUSED"}, sources={"dns": {"misses": 2}, "proxy": {"misses": 1}}))}
    assert facts["dns"] == SourceFact("dns", 3, snapshots.at("-5m"), "REFUSED")
    assert facts["proxy"] == SourceFact("proxy", 0, NOW)
    assert facts["proxmox"].misses == facts["engine"].misses == facts["database"].misses == 0


def test_agents_are_a_source_too() -> None:
    """Unknown as a whole where nobody was asked; one answer, or one silence, and it works."""
    failed = snapshot(unknown={"agents": "x"}, sources={"agents": {"misses": 1}})
    facts = {f.source: f for f in sources(failed)}
    assert facts["agents"] == SourceFact("agents", 2, snapshots.at("-5m"), "x")
    for servers in ({"fern": {}, "moss": {"agent": "not_asked"}}, {"fern": {"agent": "silent"}, "moss": {"agent": "not_asked"}}, {}):
        assert {f.source: f.misses for f in sources(snapshot(servers=servers))}["agents"] == 0


_PERSON = {"reachable": False, "ready": False, "state": "stopped", "unready": 900, "reason": "its container is stopped by root@pam"}


@pytest.mark.parametrize(
    "between",
    [
        {"unknown": {"proxmox": "no quorum"}},
        {"servers": {"fern": {"agent": "silent", "container": "unknown", "registered": False}}},
        {"servers": {"fern": {"agent": "silent", "container": "missing", "registered": False}}},
        {"duplicate_vmids": [10_001]},
    ],
    ids=["proxmox_unknown", "status_unknown", "not_listed", "duplicate"],
)
def test_who_stopped_it_outlives_a_sweep_that_does_not_know(between: dict[str, Any]) -> None:
    """Task lists forget; a container that a person stopped is not started because Proxmox once gave no answer."""
    stopped = {"level": 2, "servers": {"fern": {"agent": "silent", "container": "stopped", "registered": False}}}
    (during,) = observations(snapshot({**stopped, **between}, observations={"fern": _PERSON}))
    assert (during.ready, during.misses, during.unready) == (None, 1, 900)
    after = snapshot(stopped)
    plan = decide(dataclasses.replace(after, fleet=dataclasses.replace(after.fleet, observations={"fern": during})), POLICY)
    assert plan.repairs == ()
    (kept,) = observations(dataclasses.replace(after, fleet=dataclasses.replace(after.fleet, observations={"fern": during})))
    assert (kept.reason, kept.unready, kept.misses) == (_PERSON["reason"], 901, 0)


def test_who_stopped_it_is_forgotten_once_it_runs() -> None:
    (seen,) = observations(snapshot(servers={"fern": {"agent": "silent"}}, observations={"fern": _PERSON}))
    assert (seen.state, seen.reason) == (None, "connect timed out after 3 s")


STOPPED = {"agent": "stopped", "registered": False}


def test_what_should_run_and_is_stopped_is_counted_and_not_ready_is_not() -> None:
    assert sightings(snapshot(servers={"fern": STOPPED, "moss": {"agent": "not_ready", "unready": 4}}), POLICY) == {"idle:fern": 1}
    assert sightings(snapshot(servers={"fern": {**STOPPED, "stopped": 1}}), POLICY) == {"idle:fern": 2}
    assert sightings(snapshot(servers={"fern": {**STOPPED, "state": "suspended", "stopped": 1}}), POLICY) == {"idle:fern": 2}
    assert sightings(snapshot(servers={"fern": {**STOPPED, "desired": "stopped", "stopped": 1}}), POLICY) == {}
    assert sightings(snapshot(servers={"fern": {"agent": "not_ready", "stopped": 1}}), POLICY) == {}, "it is starting"


@pytest.mark.parametrize("doubt", [{"agent": "silent"}, {"agent": "unasked"}])
def test_a_sweep_that_cannot_tell_neither_counts_nor_forgets_what_was_stopped(doubt: dict[str, Any]) -> None:
    assert sightings(snapshot(servers={"fern": {**doubt, "stopped": 1}}), POLICY) == {"idle:fern": 1}
    assert sightings(snapshot(servers={"fern": {"agent": "stopped", "stopped": 1}}, unknown={"proxmox": "no quorum"}), POLICY) == {"idle:fern": 1}
