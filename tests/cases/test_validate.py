"""M1's rules: one data file per decision. A world without a fault is filled in; a case names only what differs, and every problem that follows.

``machines`` are virtual ones (VMID → node). Ids are letters; ``rows`` of a problem may be left out, ``mend`` is a part of the command.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.decide.validate import containers, database
from flows.domain.records import LeaseRecord, Limits, OddValue, OperationRecord, Orphan, Overdue, Records, Reservation, ServerRecord
from flows.domain.sources import Container, ProxmoxView
from flows.domain.validation import Problem

CASES = sorted(Path(__file__).parent.joinpath("validate").glob("*.yml"))
NOW, MINUTE = 1_760_000_000_000, 60_000
LIMITS = Limits()


def uid(letter: str) -> str:
    """A real id for a letter, so that rules which recognise ids do."""
    return f"00000000-0000-7000-8000-{ord(letter):012x}" if len(letter) == 1 else letter


def ago(minutes: float | None) -> int | None:
    return None if minutes is None else NOW - int(minutes * MINUTE)


def server(number: int, given: dict[str, Any]) -> ServerRecord:
    given = {"id": "abcdefgh"[number], "vmid": 10_001 + number, "address": f"10.20.0.{number + 1}", "node": "pve1", "state": "active"} | given
    name = given.pop("name", f"game-{given['id']}")
    owning = given["state"] not in ("deleted", "failed")
    return ServerRecord(
        id=uid(given.pop("id")), name=name, live_name=given.pop("live_name", name if owning else None), ctype="game",
        created_at=NOW - 600 * MINUTE, activated_at=ago(given.pop("activated_ago", 500 if given["state"] in ("active", "suspended") else None)),
        deleted_at=ago(given.pop("deleted_ago", 10 if given["state"] == "deleted" else None)), **given,
    )  # fmt: skip


def operation(given: dict[str, Any], states: dict[str, str]) -> OperationRecord:
    given = {"id": "o", "kind": "restart", "state": "running", "attempt": 1, "attempt_state": "claimed", "server": "a"} | given
    owner = uid(given.pop("server"))
    live = given["state"] in ("queued", "running", "cancelling", "compensating", "cleanup_required")
    holds = given.pop("holds", "a" if live else None)
    return OperationRecord(
        id=uid(given.pop("id")), server_id=owner, live_server=owner if holds == "a" else holds, created_at=NOW - 60 * MINUTE,
        progress_at=int(ago(given.pop("progress_ago", 1)) or 0), deadline_at=int(ago(given.pop("deadline_ago", -30)) or 0),
        finished_at=ago(given.pop("finished_ago", None if live else 1)), server_state=given.pop("server_state", states.get(owner)), **given,
    )  # fmt: skip


def lease(given: dict[str, Any], states: dict[str, str], operations: dict[str, str]) -> LeaseRecord:
    given = {"kind": "operation", "holder": "host:1:0123abcd", "operation": None, "subject": "a", "expired_ago": -0.5} | given
    subject, op = uid(given["subject"]), given["operation"]
    return LeaseRecord(
        subject, given["kind"], given["holder"], uid(op) if op else None, int(ago(given["expired_ago"]) or 0),
        states.get(subject), given.get("operation_state", operations.get(uid(op)) if op else None),
    )  # fmt: skip


def reservation(thing: str, given: dict[str, Any], states: dict[str, str]) -> Reservation:
    owner = uid(given["server"]) if given.get("server") else None
    return Reservation(thing, given["state"], owner, int(ago(given.get("ago", 10)) or 0), None, states.get(owner or ""))


def records(case: dict[str, Any]) -> Records:
    servers = [server(number, dict(given)) for number, given in enumerate(case.get("servers", [{}]))]
    states = {s.id: s.state for s in servers}
    operations = [operation(dict(given), states) for given in case.get("operations", ())]
    owned = [s for s in servers if s.state not in ("deleted", "failed")]
    vmids = {s.vmid: Reservation(str(s.vmid), "reserved", s.id, 0, None, s.state) for s in owned}
    addresses = {s.address: Reservation(s.address, "reserved", s.id, 0, None, s.state) for s in owned}
    for thing, given in case.get("vmids", {}).items():
        vmids.pop(thing, None)
        vmids |= {thing: reservation(str(thing), given, states)} if given else {}
    for thing, given in case.get("addresses", {}).items():
        addresses.pop(thing, None)
        addresses |= {thing: reservation(thing, given, states)} if given else {}
    return Records(
        NOW, tuple(servers), tuple(operations),
        tuple(lease(dict(given), states, {o.id: o.state for o in operations}) for given in case.get("leases", ())), vmids, addresses,
        tuple(Overdue(o["table"], o["key"], o["what"], int(ago(o["since_ago"]) or 0)) for o in case.get("overdue", ())),
        tuple(Orphan(o["table"], o["column"], o["refers_to"], o["count"], tuple(o["keys"])) for o in case.get("orphans", ())),
        tuple(OddValue(o["table"], o["column"], o["value"], o["count"], tuple(o["keys"])) for o in case.get("odd", ())),
    )  # fmt: skip


def view(case: dict[str, Any], known: Records) -> ProxmoxView:
    found = {
        s.vmid: Container(s.vmid, s.node, "running", f"zlh-game-{s.vmid}", frozenset({"zlh", f"zlh-srv-{s.id}"}))
        for s in known.servers
        if s.state in ("active", "suspended", "deleting")
    }
    for vmid, given in case.get("containers", {}).items():
        found.pop(vmid, None)
        if given is not None:
            tags = frozenset(f"zlh-srv-{uid(tag[8:])}" if tag.startswith("zlh-srv-") else tag for tag in given.get("tags", ()))
            found[vmid] = Container(
                vmid, given.get("node", "pve1"), given.get("status", "running"), given.get("name", ""), tags, template=given.get("template", False)
            )
    return ProxmoxView(found, {"pve1": True}, duplicate_vmids=frozenset(case.get("twice", ())))


def judged(case: dict[str, Any]) -> list[Problem]:
    known = records(case)
    looked_at = NOW - MINUTE
    seen = view(case, known)
    absent = {s.id for s in containers.missing(known, seen, looked_at)} if case.get("proven", True) else set()
    others = {s.id: case["machines"][s.vmid] for s in containers.missing(known, seen, looked_at) if s.vmid in case.get("machines", {})}
    return [*database.problems(known, LIMITS), *containers.problems(known, seen, looked_at, absent - others.keys(), others)]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_decision(path: Path) -> None:
    case = yaml.safe_load(path.read_text())
    found, wanted = judged(case), case["expect"]
    assert [p.rule for p in found] == [w["rule"] for w in wanted], found
    for problem, want in zip(found, wanted, strict=True):
        if "rows" in want:
            assert list(problem.objects) == [":".join([t, uid(k)]) for t, _, k in (r.partition(":") for r in want["rows"])]
        assert want.get("says", "") in problem.says
        for part in [want["mend"]] if isinstance(want.get("mend"), str) else want.get("mend", []):
            assert part in problem.remedy
        assert problem.remedy and problem.objects


def test_every_rule_has_a_case() -> None:
    tried = {w["rule"] for path in CASES for w in yaml.safe_load(path.read_text())["expect"]}
    source = "".join(p.read_text() for p in Path(database.__file__).parent.glob("*.py"))
    rules = set(re.findall(r'(?:problem|duplicates)\(\s*(?:records, )?"(\w+)"', source)) - {"migration_head"}
    assert rules == tried
