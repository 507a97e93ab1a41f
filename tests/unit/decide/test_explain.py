"""``explain`` tells the story of the plan: the same verdicts, per source, with the command and what comes next."""

from __future__ import annotations

from typing import Any

import pytest

from flows.decide.explain import WORDS, CheckVerdict, Explanation, explain
from flows.domain.finding import Action, Check
from tests.support import snapshots


def _explain(**given: Any) -> Explanation:
    return explain(snapshots.snapshot(given), snapshots.POLICY, "fern")


def _verdict(explanation: Explanation, check: Check) -> CheckVerdict:
    (found,) = [v for line in explanation.lines for v in line.verdicts if v.check is check]
    return found


def test_a_healthy_server() -> None:
    told = _explain()
    assert {v.state for line in told.lines for v in line.verdicts} == {"ok"}
    assert told.would == told.does_not == told.next == told.commands == ()
    says = {line.source: line.says for line in told.lines}
    assert says["database"].startswith("active, desired running, edge open, customer active, no lease, breaker closed (0 of 3")
    assert says["proxmox"] == "running on pve1, since 2 h, tags zlh"
    assert says["dns"] == "fern.play.example → 203.0.113.7"


@pytest.mark.parametrize(
    ("brake", "said"),
    [
        ({"scope": "server", "target": "fern", "actor": "cli:ann", "reason": "a mod"}, "paused by cli:ann (server): a mod"),
        ({"scope": "host", "target": "pve1", "actor": "cli:ann", "reason": ""}, "paused by cli:ann (host)"),
        ({"scope": "all", "target": "", "actor": "cli:ann", "reason": "", "until": "-1s"}, ""),
        ({"scope": "host", "target": "pve2", "actor": "cli:ann", "reason": ""}, ""),
    ],
)
def test_a_pause_is_said_without_any_finding(brake: dict[str, Any], said: str) -> None:
    told = _explain(brakes=[brake])
    (database,) = [line.says for line in told.lines if line.source == "database"]
    assert said in database and ("paused" in database) is bool(said)


def test_the_example_of_the_manual() -> None:
    told = _explain(
        servers={"fern": {"agent": "silent", "misses": 1}},
        episodes={"agent_offline/fern": {"reason": "level_disabled", "escalated_at": "-3h"}},
        repairs=[{"check": "dns_record", "action": "publish_dns", "subject": "fern"}],
    )
    says = {line.source: line.says for line in told.lines}
    assert "breaker closed (1 of 3 attempts this hour)" in says["database"]
    assert says["agent"] == "no answer in 2 sweeps (connect timed out after 3 s)"
    assert _verdict(told, Check.AGENT_OFFLINE).reason == "level_disabled"
    assert _verdict(told, Check.PROXY_STALE_REGISTRATION) == CheckVerdict(Check.PROXY_STALE_REGISTRATION, "not judged", "readiness unknown")
    assert _verdict(told, Check.DNS_RECORD).state == "ok"
    assert told.would == ("restart zlh-agent (level 2)",)
    assert told.does_not == ("agent_offline: level_disabled (level 2 is off)",)
    assert told.next == ("a person was told and is reminded daily",)
    assert told.next_at == {"agent_offline": snapshots.at("-3h")}
    assert told.commands == ("zlh restart-agent fern",)


def test_an_unknown_source_says_so_and_its_checks_are_not_judged() -> None:
    told = _explain(unknown={"dns": "REFUSED"})
    (dns,) = [line for line in told.lines if line.source == "dns"]
    assert (dns.known, dns.says) == (False, "unknown: REFUSED")
    assert {v.state for v in dns.verdicts} == {"not judged"}


def test_what_is_being_repaired() -> None:
    told = _explain(servers={"fern": {"published": False}})
    assert told.would == ("publish the DNS record (level 1)",)
    assert told.does_not == ()
    assert told.next == ("repaired in this sweep",)


def test_backoff_names_its_time() -> None:
    operation = {"server_id": "fern", "state": "cleanup_required", "attempt_state": "ended", "undo_failures": 2, "progress_at": "-1m"}
    told = _explain(servers={"fern": {"state": "creating"}}, operations={"op1": operation})
    assert told.next_at == {"cleanup_required": snapshots.at("+1m")}


def test_a_host_that_is_down_concerns_its_servers() -> None:
    told = _explain(nodes={"pve1": False})
    assert _verdict(told, Check.HOST_DOWN).state == "found"
    assert "node pve1 is offline" in {line.source: line.says for line in told.lines}["proxmox"]


def test_every_action_has_words() -> None:
    assert set(WORDS) == set(Action)


def test_an_unknown_server_is_refused() -> None:
    with pytest.raises(KeyError):
        explain(snapshots.snapshot(), snapshots.POLICY, "nobody")
