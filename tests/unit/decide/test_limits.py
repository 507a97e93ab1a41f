"""Which repairs begin."""

from __future__ import annotations

from flows.decide import limits
from flows.domain.finding import Action, Check, Finding, Policy, RepairRow

POLICY = Policy()


def _finding(subject: str, action: Action = Action.PUBLISH_DNS, host: str | None = None, server: str | None = None) -> Finding:
    return Finding(Check.DNS_RECORD, subject, "", 1, action, server_id=server or subject, host=host)


def _begun(verdicts: dict[str, str]) -> list[str]:
    return sorted(key.partition("/")[2] for key, why in verdicts.items() if not why)


def test_every_action_has_its_place() -> None:
    assert set(limits.ORDER) == set(Action)


def test_four_at_once() -> None:
    verdicts = limits.select([_finding(f"s{i}", host=f"h{i}") for i in range(6)], [], {}, POLICY)
    assert _begun(verdicts) == ["s0", "s1", "s2", "s3"]
    assert verdicts["dns_record/s5"] == "4 repairs at once"


def test_two_per_host() -> None:
    verdicts = limits.select([_finding(f"s{i}", host="h") for i in range(3)] + [_finding("s9", host="other")], [], {}, POLICY)
    assert _begun(verdicts) == ["s0", "s1", "s9"]
    assert verdicts["dns_record/s2"] == "2 repairs at once on host h"


def test_the_order_decides_who_goes_first() -> None:
    findings = [_finding(f"s{i}", a, host=f"h{i}") for i, a in enumerate(sorted(Action, key=limits.ORDER.__getitem__, reverse=True))]
    begun = _begun(limits.select(findings, [], {}, POLICY))
    firsts = {Action.FAIL_STUCK, Action.REVOKE_AND_RESUBMIT, Action.SUBMIT_ATTEMPT, Action.NEXT_ATTEMPT}
    assert begun == sorted(f.subject for f in findings if f.action in firsts)


def test_one_per_server() -> None:
    verdicts = limits.select([_finding("proxy:a", Action.DEREGISTER_PROXY, server="a"), _finding("a")], [], {}, POLICY)
    assert _begun(verdicts) == ["proxy:a"]


def test_repairs_under_way_count() -> None:
    rows = [RepairRow(str(i), Check.DNS_RECORD, Action.PUBLISH_DNS, f"r{i}", f"r{i}", "h", 1, True, 0) for i in range(2)]
    verdicts = limits.select([_finding(f"s{i}", host="h" if i == 0 else None) for i in range(4)] + [_finding("r0")], rows, {}, POLICY)
    assert _begun(verdicts) == ["s1", "s2"]
    assert verdicts["dns_record/r0"] == "another repair of the same server goes first"


def _lasting(number: int, host: str = "h") -> RepairRow:
    return RepairRow(str(number), Check.AGENT_OFFLINE, Action.RESTART_AGENT, f"r{number}", f"r{number}", host, 2, True, 0, operation_id=f"op{number}")


def test_what_lasts_has_half_of_the_slots() -> None:
    findings = [_finding(f"s{i}", Action.START_WORKLOAD, host=f"h{i}") for i in range(4)]
    assert _begun(limits.select(findings, [], {}, POLICY)) == ["s0", "s1"]
    assert _begun(limits.select(findings, [_lasting(1, "h0")], {}, POLICY)) == ["s1"]
    crowd = [_finding(f"q{i}", Action.DEREGISTER_PROXY, host=f"h{i}") for i in range(4)]
    assert _begun(limits.select([*crowd, findings[0]], [], {}, POLICY)) == ["q0", "q1", "q2", "q3"], "four at once, whatever they are"
    assert _begun(limits.select(crowd, [_lasting(1, "a"), _lasting(2, "b")], {}, POLICY)) == ["q0", "q1"]


def test_what_lasts_never_keeps_its_own_lost_run_from_being_taken_up() -> None:
    """Seen on a machine that was too busy to start runs: the intent of a restart is open, its run died, and nothing but the next attempt ends it."""
    lost = [_finding(f"operation:op{i}", Action.NEXT_ATTEMPT, host="h", server=f"r{i}") for i in range(2)]
    assert _begun(limits.select(lost, [_lasting(0), _lasting(1)], {}, POLICY)) == ["operation:op0"], "one slot is left, and then the next"
    one = Policy(concurrent_repairs=1, concurrent_per_host=1)
    assert _begun(limits.select(lost[:1], [_lasting(0)], {}, one)) == ["operation:op0"]
