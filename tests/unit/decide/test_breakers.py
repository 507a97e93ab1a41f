"""Breakers: what counts, for how long, and who has been told."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flows.decide.breakers import Breakers, counts
from flows.domain.finding import OPERATION_ACTIONS, WITHDRAWALS, Action, Check, Finding
from tests.support import snapshots
from tests.support.snapshots import NOW, POLICY

PUBLISH = Finding(Check.DNS_RECORD, "fern", "", 1, Action.PUBLISH_DNS, server_id="fern")


def _breakers(*rows: dict[str, Any], **more: Any) -> Breakers:
    row = {"check": "dns_record", "action": "publish_dns", "subject": "fern"}
    return Breakers(snapshots.snapshot(repairs=[{**row, **r} for r in rows], **more).fleet, POLICY, NOW)


@pytest.mark.parametrize("action", Action)
def test_what_counts(action: Action) -> None:
    assert counts(action) == (action not in WITHDRAWALS and action not in OPERATION_ACTIONS and action is not Action.REHYDRATE_PROXY)


def test_three_attempts_open_it_whatever_their_outcome() -> None:
    assert _breakers({"copies": 2}).blocks(PUBLISH) == ""
    assert _breakers({"copies": 2}, {"outcome": None}).blocks(PUBLISH) == "3 attempts within the hour"
    assert _breakers({"copies": 2}, {"outcome": "already_healed"}).is_open("fern")


def test_the_hour_is_rolling() -> None:
    assert not _breakers({"copies": 2}, {"intent_at": "-60m"}).is_open("fern")
    assert _breakers({"copies": 2}, {"intent_at": "-59m"}).is_open("fern")


def test_what_was_not_counted_does_not_count() -> None:
    assert _breakers({"copies": 9, "counted": False}).attempts("fern") == 0


def test_other_servers_do_not_count() -> None:
    assert not _breakers({"copies": 3, "subject": "moss"}).is_open("fern")


def test_withdrawals_and_operations_are_never_blocked() -> None:
    breakers = _breakers({"copies": 5})
    for action in WITHDRAWALS | OPERATION_ACTIONS:
        assert breakers.blocks(Finding(Check.DNS_RECORD, "fern", "", 1, action, server_id="fern")) == ""


@pytest.mark.parametrize("outcome", ["failed", "unverified"])
def test_told_by_the_third_failure_of_its_own_episode_alone(outcome: str) -> None:
    """``act`` raises the alert for a repair that failed and for one whose end nobody saw."""
    last = {"outcome": outcome, "intent_at": "-1m", "episode_id": "e1"}
    opened = _breakers({"copies": 2, "outcome": "failed"}, last)
    assert opened.announced(PUBLISH, "e1")
    assert not opened.announced(PUBLISH, "e2")
    assert not opened.announced(PUBLISH, None)
    assert not opened.announced(dataclasses.replace(PUBLISH, check=Check.PROXY_REGISTRATION), "e1")
    assert not _breakers({"copies": 2}, last).announced(PUBLISH, "e1")


def test_not_told_where_no_failure_opened_it() -> None:
    assert not _breakers({"copies": 3, "episode_id": "e1"}).announced(PUBLISH, "e1")
    assert not _breakers({"copies": 3, "outcome": "failed", "episode_id": None}).announced(PUBLISH, None)
