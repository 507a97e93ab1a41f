"""M3 by data: which machines are strangers, and how many workers are too many."""

from __future__ import annotations

import pytest

from flows.decide.validate.topology import WORKER, problems
from flows.domain.topology import Expected, Peer, host_of, worker_name

HERE = Expected({"control1": frozenset()}, "control1")
TWO = Expected({"control1": frozenset({"10.0.0.2"}), "pve-old": frozenset({"10.0.0.3", "10.0.0.4"})}, "control1", workers=2)


@pytest.mark.parametrize(
    ("peer", "expected", "known"),
    [
        (Peer("controller", "control1:7:0123abcd", host="control1"), HERE, True),
        (Peer("controller", "control2:7:0123abcd", host="control2"), HERE, False),
        (Peer(WORKER, "zlh:pve:1", host="pve"), TWO, False),  # part of a name is not the name
        (Peer("database connection", "a#1", host="control1.example.net"), HERE, True),  # as a name server completes it
        (Peer("database connection", "a#1", host="control12.example.net"), HERE, False),
        (Peer("Redis client", "a#1", address="10.0.0.4"), TWO, True),
        (Peer("Redis client", "a#1", address="10.0.0.5"), TWO, False),
        (Peer("Redis client", "a#1", local=True), HERE, True),
        (Peer("Redis client", "a#1", local=True), Expected({"control9": frozenset({"10.0.0.9"})}, "control1"), False),
        (Peer(WORKER, "nameless"), HERE, False),  # it does not say where it runs
    ],
)
def test_who_is_known(peer: Peer, expected: Expected, known: bool) -> None:
    assert (not list(problems([peer], expected))) is known


def test_strangers_of_one_machine_are_one_finding() -> None:
    found = list(problems([Peer("database connection", f"zlh#{n}", address="10.9.9.9") for n in range(7)], TWO))
    assert [(p.rule, len(p.objects)) for p in found] == [("unexpected_host", 7)]
    assert "7 × database connection on 10.9.9.9" in found[0].says


def test_more_workers_than_expected() -> None:
    workers = [Peer(WORKER, worker_name("control1", n, 0), host="control1") for n in range(3)]
    assert list(problems(workers[:2], TWO)) == []
    [found] = problems(workers, TWO)
    assert (found.rule, len(found.objects)) == ("too_many_workers", 3)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        (worker_name("control1.example", 7, 3.5), "control1.example"),
        ("control1:123:0123abcd", "control1"),
        ("cli:eve", ""),
        ("zlh-123-456", ""),
        ("control1:123:0123abcd extra", ""),
    ],
)
def test_whose_machine_a_name_says(name: str, host: str) -> None:
    assert host_of(name) == host
