"""Wanted records, by kind of the player's address and by port; who is published."""

from __future__ import annotations

import dataclasses

import pytest

from flows.decide.wanted import Names, base_name, fqdn, publishable, suspended, wanted_records, wants_name
from flows.domain.server import BillingState, ContainerType, Edge, Server, ServerState
from flows.domain.sources import Record, ZoneView
from tests.support import snapshots

FERN: Server = snapshots.snapshot().fleet.servers["fern"]
NAME = "fern.play.example"


@pytest.mark.parametrize(
    ("address", "rtype", "value"),
    [
        ("203.0.113.7", "A", "203.0.113.7"),
        ("2001:DB8:0::7", "AAAA", "2001:db8::7"),
        ("Proxy.Example.net.", "CNAME", "proxy.example.net"),
    ],
)
def test_address_record_by_kind(address: str, rtype: str, value: str) -> None:
    assert wanted_records(FERN, snapshots.policy(player_address=address, record_ttl_s=30)) == (Record(NAME, rtype, value, 30),)


def test_another_port_adds_an_srv_record() -> None:
    records = wanted_records(FERN, snapshots.policy(player_port=25577))
    assert records[1] == Record(f"_minecraft._tcp.{NAME}", "SRV", f"0 5 25577 {NAME}", 60)
    assert base_name(records[1].name) == NAME


def test_names_are_lower_case_without_the_trailing_dot() -> None:
    assert fqdn(FERN, snapshots.policy(game_domain="Play.Example.")) == NAME


@pytest.mark.parametrize("present", [wanted_records(FERN, snapshots.POLICY), (Record(NAME, "A", "203.0.113.7"), Record(NAME, "TXT", "x"))])
def test_right_records_are_left_alone(present: tuple[Record, ...]) -> None:
    assert Names(snapshots.POLICY).wrong(FERN, ZoneView({NAME: present}, {NAME: "fern"})) == ""


def test_an_owner_record_of_another_server_is_wrong() -> None:
    zone = ZoneView({NAME: wanted_records(FERN, snapshots.POLICY)}, {NAME: "moss"})
    assert Names(snapshots.POLICY).wrong(FERN, zone) == "the owner record names another server"


def test_an_srv_record_that_is_not_wanted_is_wrong() -> None:
    srv = Record(f"_minecraft._tcp.{NAME}", "SRV", f"0 5 25577 {NAME}")
    zone = ZoneView({NAME: wanted_records(FERN, snapshots.POLICY), srv.name: (srv,)}, {NAME: "fern"})
    assert Names(snapshots.POLICY).wrong(FERN, zone) == "an SRV record that is not wanted"


@pytest.mark.parametrize(
    "change",
    [{"state": ServerState.CREATING}, {"state": ServerState.SUSPENDED}, {"ctype": ContainerType.DEV}, {"edge": Edge.WITHDRAWN}],
)
def test_only_active_open_games_are_published(change: dict[str, object]) -> None:
    assert publishable(FERN, BillingState.PAST_DUE)
    assert not publishable(dataclasses.replace(FERN, **change), BillingState.ACTIVE)  # type: ignore[arg-type] # one field at a time


def test_unknown_standing_neither_publishes_nor_suspends() -> None:
    assert not publishable(FERN, None)
    assert not suspended(FERN, None)
    assert wants_name(FERN, None, in_operation=False)


@pytest.mark.parametrize("state", [ServerState.CREATING, ServerState.DELETING])
def test_a_name_in_the_making_is_the_operations_business(state: ServerState) -> None:
    server = dataclasses.replace(FERN, state=state)
    assert wants_name(server, BillingState.ACTIVE, in_operation=True)
    assert not wants_name(server, BillingState.ACTIVE, in_operation=False)


def test_a_stopped_server_keeps_its_name_and_a_suspended_one_does_not() -> None:
    assert wants_name(dataclasses.replace(FERN, edge=Edge.WITHDRAWN), BillingState.ACTIVE, in_operation=False)
    assert not wants_name(FERN, BillingState.SUSPENDED, in_operation=False)
