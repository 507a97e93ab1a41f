"""The DNS client against the lab's name server, which speaks the real protocol: TSIG, UPDATE with prerequisites, AXFR."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import dns.asyncquery
import dns.name
import dns.rcode
import dns.tsig
import dns.update
import pytest
from pydantic import SecretStr

from flows.clients.dns import DnsClient
from flows.domain.sources import Record
from flows.errors import (
    AmbiguousEffect,
    BadInput,
    Conflict,
    Forbidden,
    MisconfiguredSetting,
    Unauthorized,
    Unproven,
    Unreachable,
)
from flows.lab.config import DnsConfig
from flows.lab.dns import DnsPart
from flows.lab.faults import Faults, Mode
from flows.settings import DnsSettings

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="
NAME = "alpha.play.example"
WANTED = (Record(NAME, "A", "192.0.2.1"), Record(f"_minecraft._tcp.{NAME}", "SRV", f"0 5 25577 {NAME}"))


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def lab(faults: Faults) -> AsyncIterator[DnsPart]:
    part = DnsPart(DnsConfig(tsig_secret=SecretStr(SECRET)), faults)
    await part.open()
    yield part
    await part.stop()


def client_of(lab: DnsPart, **changes: Any) -> DnsClient:
    values: dict[str, Any] = {"server": lab.endpoints["server"], "tsig_secret": SecretStr(SECRET), "timeout_s": 3.0}
    return DnsClient(DnsSettings(**(values | changes)))


@pytest.fixture
def client(lab: DnsPart) -> DnsClient:
    return client_of(lab)


async def test_a_name_is_published_read_and_withdrawn(client: DnsClient) -> None:
    assert await client.records(NAME) == ()
    await client.publish(NAME, WANTED, "srv-1", ())
    zone = await client.zone()
    assert zone.records[NAME] == (WANTED[0],)
    assert zone.records[f"_minecraft._tcp.{NAME}"] == (WANTED[1],)
    assert zone.owners == {NAME: "srv-1"}
    assert set(await client.records(NAME)) == {*WANTED, Record(f"_zlh.{NAME}", "TXT", "zlh-owner=srv-1")}
    await client.withdraw(NAME, "srv-1", zone.records[NAME])
    assert await client.records(NAME) == ()
    assert (await client.zone()).owners == {}


@pytest.mark.parametrize(("rtype", "value"), [("A", "192.0.2.9"), ("AAAA", "2001:db8::9"), ("CNAME", "proxy.example.net")])
async def test_one_kind_of_address_replaces_another(client: DnsClient, rtype: str, value: str) -> None:
    await client.publish(NAME, WANTED, "srv-1", ())
    await client.publish(NAME, [Record(NAME, rtype, value, 90)], "srv-2", await client.records(NAME))
    zone = await client.zone()
    assert zone.records[NAME] == (Record(NAME, rtype, value, 90),)
    assert f"_minecraft._tcp.{NAME}" not in zone.records
    assert zone.owners == {NAME: "srv-2"}


async def test_what_changed_meanwhile_is_a_conflict_and_stays(client: DnsClient, lab: DnsPart) -> None:
    await client.publish(NAME, WANTED, "srv-1", ())
    seen = await client.records(NAME)
    await lab.manipulate("replace", {"name": NAME, "rtype": "A", "value": "192.0.2.66"})
    with pytest.raises(Conflict, match="changed"):
        await client.publish(NAME, WANTED, "srv-1", seen)
    with pytest.raises(Conflict, match="changed"):
        await client.withdraw(NAME, "srv-1", seen)
    assert (await client.zone()).records[NAME][0].value == "192.0.2.66"


async def test_a_record_that_appeared_meanwhile_is_a_conflict(client: DnsClient, lab: DnsPart) -> None:
    await lab.manipulate("add", {"name": NAME, "rtype": "AAAA", "value": "2001:db8::1"})
    with pytest.raises(Conflict):
        await client.publish(NAME, WANTED, "srv-1", ())


async def test_the_same_call_twice_does_nothing_the_second_time(client: DnsClient) -> None:
    await client.publish(NAME, WANTED, "srv-1", ())
    with pytest.raises(Conflict):
        await client.publish(NAME, WANTED, "srv-1", ())


async def test_another_owners_name_is_not_withdrawn(client: DnsClient) -> None:
    await client.publish(NAME, WANTED, "srv-1", ())
    with pytest.raises(Conflict):
        await client.withdraw(NAME, "srv-2", await client.records(NAME))
    assert (await client.zone()).owners == {NAME: "srv-1"}


async def test_a_lost_answer_is_ambiguous_and_the_effect_is_there(client: DnsClient, faults: Faults) -> None:
    faults.arm("dns", Mode.LOSE_ANSWER, call="UPDATE *", count=1)
    with pytest.raises(AmbiguousEffect):
        await client.publish(NAME, WANTED, "srv-1", ())
    assert (await client.zone()).owners == {NAME: "srv-1"}


async def test_a_hanging_server_ends_at_the_time_out(lab: DnsPart, faults: Faults) -> None:
    client = client_of(lab, timeout_s=0.3)
    faults.arm("dns", Mode.HANG)
    with pytest.raises(AmbiguousEffect):
        await client.publish(NAME, WANTED, "srv-1", ())
    with pytest.raises(Unreachable):
        await client.zone()


async def test_a_read_is_tried_again_once(client: DnsClient, faults: Faults) -> None:
    faults.arm("dns", Mode.UNREACHABLE, call="AXFR *", count=1)
    assert (await client.zone()).owners == {}
    faults.arm("dns", Mode.UNREACHABLE, call="AXFR *", count=2)
    with pytest.raises((Unreachable, Unproven)):
        await client.zone()


async def test_a_transfer_that_breaks_off_proves_nothing(client: DnsClient, faults: Faults) -> None:
    await client.publish(NAME, WANTED, "srv-1", ())
    faults.arm("dns", Mode.PARTIAL, call="AXFR *")
    with pytest.raises(Unproven):
        await client.zone()


async def test_a_zone_of_many_messages_is_whole(client: DnsClient, lab: DnsPart) -> None:
    update = dns.update.UpdateMessage("play.example", keyring=dns.tsig.Key("zlh", SECRET, "hmac-sha256"))
    for index in range(1500):
        update.add(f"s{index}", 60, "A", "192.0.2.1")
    host, _, port = lab.endpoints["server"].rpartition(":")
    assert (await dns.asyncquery.tcp(update, host, 10, int(port))).rcode() == dns.rcode.NOERROR
    assert sum(name.startswith("s") for name in (await client.zone()).records) == 1500


async def test_an_unsigned_or_wrongly_signed_client_names_the_setting(lab: DnsPart) -> None:
    wrong = client_of(lab, tsig_secret=SecretStr("d3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmc="))
    for call in (wrong.zone(), wrong.publish(NAME, WANTED, "srv-1", ())):
        with pytest.raises(Unauthorized, match="ZLH_DNS__TSIG_SECRET") as caught:
            await call
        assert "d3Jvbmc" not in str(caught.value)
    stranger = client_of(lab, tsig_name="nobody")
    for call in (stranger.zone(), stranger.publish(NAME, WANTED, "srv-1", ())):
        with pytest.raises(Unauthorized, match="nobody"):
            await call


@pytest.mark.parametrize("secret", ["", "not base64!", "x"])
async def test_a_key_that_cannot_be_one_names_the_setting(lab: DnsPart, secret: str) -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_DNS__TSIG_SECRET"):
        await client_of(lab, tsig_secret=SecretStr(secret)).zone()


async def test_an_unknown_algorithm_names_the_setting(lab: DnsPart) -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_DNS__TSIG_ALGORITHM"):
        await client_of(lab, tsig_algorithm="hmac-rot13").zone()


async def test_a_zone_of_somebody_else_is_refused(lab: DnsPart) -> None:
    with pytest.raises((Unauthorized, Forbidden)):
        await client_of(lab, zone="other.example").zone()


async def test_nobody_listening_is_unreachable_for_writes_too(lab: DnsPart) -> None:
    client = client_of(lab)
    await lab.stop()
    with pytest.raises(Unreachable, match="refused"):
        await client.publish(NAME, WANTED, "srv-1", ())
    with pytest.raises(Unreachable):
        await client.zone()


async def test_a_host_name_is_refused() -> None:
    with pytest.raises(MisconfiguredSetting, match="ZLH_DNS__SERVER"):
        DnsClient(DnsSettings(server="ns1.example:53"))


@pytest.mark.parametrize(
    ("name", "wanted", "owner"),
    [
        ("alpha.elsewhere.example", (), "srv-1"),
        ("play.example", (), "srv-1"),
        (NAME, (Record(NAME, "A", "not an address"),), "srv-1"),
        (NAME, (Record("beta.play.example", "A", "192.0.2.1"),), "srv-1"),
        (NAME, (Record(NAME, "MX", "10 mail.example"),), "srv-1"),
        (NAME, WANTED, 'x" "y'),
    ],
)
async def test_what_no_update_may_say_is_not_sent(client: DnsClient, lab: DnsPart, name: str, wanted: tuple[Record, ...], owner: str) -> None:
    with pytest.raises(BadInput):
        await client.publish(name, wanted, owner, ())
    assert lab.inspect()["updates"] == []


async def test_two_publishers_one_wins(client: DnsClient, lab: DnsPart) -> None:
    other = client_of(lab)
    results = await asyncio.gather(client.publish(NAME, WANTED, "srv-1", ()), other.publish(NAME, WANTED, "srv-2", ()), return_exceptions=True)
    assert sorted(type(r).__name__ for r in results) == ["Conflict", "NoneType"]


async def test_a_foreign_text_claims_nothing(client: DnsClient, lab: DnsPart) -> None:
    await lab.manipulate("add", {"name": "_zlh.beta.play.example", "rtype": "TXT", "value": '"zlh-owner=srv-9 or so"'})
    await lab.manipulate("add", {"name": "_zlh.gamma.play.example", "rtype": "TXT", "value": ['"zlh-owner=srv-1"', '"zlh-owner=srv-2"']})
    assert (await client.zone()).owners == {}


async def test_an_unsigned_yes_is_ambiguous() -> None:
    """Anybody on the way could have said it."""

    async def agree(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        header = bytearray((await reader.readexactly(size))[:12])
        zone = dns.name.from_text("play.example").to_wire() or b""
        header[2:12] = bytes([0x80 | (5 << 3), 0, 0, 1, 0, 0, 0, 0, 0, 0])  # an UPDATE's NOERROR, with its zone alone
        answer = bytes(header) + zone + bytes([0, 6, 0, 1])
        writer.write(len(answer).to_bytes(2, "big") + answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(agree, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = DnsClient(DnsSettings(server=host, tsig_secret=SecretStr(SECRET), timeout_s=2.0))
    with pytest.raises(AmbiguousEffect, match=r"requires a TSIG|not signed"):
        await client.publish(NAME, WANTED, "srv-1", ())
    server.close()
    await server.wait_closed()
