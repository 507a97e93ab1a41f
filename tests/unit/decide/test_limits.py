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
