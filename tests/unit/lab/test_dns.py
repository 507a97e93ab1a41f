"""The authoritative server, asked by dnspython over UDP and TCP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.update
import dns.xfr
import dns.zone
import pytest

from flows.errors import BadInput
from flows.lab.config import LabConfig
from flows.lab.dns import DnsPart, start
from flows.lab.faults import Faults, Mode
from flows.lab.part import Manipulable, Part, PartError, Restartable
from flows.lab.world import World

ZONE = "play.example"
SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="
KEY = dns.tsig.Key("zlh", SECRET, "hmac-sha256")


@pytest.fixture
async def part(lab_config: Callable[..., LabConfig], world: World, faults: Faults) -> AsyncIterator[DnsPart]:
    part = await start(lab_config(), world, faults)
    yield part
    await part.stop()


async def ask(part: DnsPart, name: str, rtype: str = "A", *, tcp: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, rtype)
    call = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await call(query, "127.0.0.1", port=part.port, timeout=2)


async def send(part: DnsPart, update: dns.update.UpdateMessage, key: dns.tsig.Key | None = KEY, *, tcp: bool = False) -> str:
    """The outcome of an UPDATE."""
    if key is not None:
        update.use_tsig(key)
    call = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return dns.rcode.to_text((await call(update, "127.0.0.1", port=part.port, timeout=2)).rcode())


def update() -> dns.update.UpdateMessage:
    return dns.update.UpdateMessage(ZONE)


def values(part: DnsPart, name: str, rtype: str = "A") -> list[str]:
    return sorted(r["value"] for r in part.inspect()["records"] if r["name"] == name and r["rtype"] == rtype)


async def transfer(part: DnsPart, key: dns.tsig.Key | None = KEY) -> dns.zone.Zone:
    zone = dns.zone.Zone(ZONE, relativize=False)
    query, _ = dns.xfr.make_query(zone, keyring=key)
    await dns.asyncquery.inbound_xfr("127.0.0.1", zone, query, port=part.port, timeout=5, lifetime=10)
    return zone


async def test_it_is_a_part_that_restarts_and_can_be_manipulated(part: DnsPart) -> None:
    assert isinstance(part, Part) and isinstance(part, Restartable) and isinstance(part, Manipulable)
    assert part.endpoints == {"server": f"127.0.0.1:{part.port}", "zone": ZONE}


@pytest.mark.parametrize("tcp", [False, True])
async def test_the_apex_answers_with_authority(part: DnsPart, tcp: bool) -> None:
    soa = await ask(part, ZONE, "SOA", tcp=tcp)
    assert soa.flags & dns.flags.AA and soa.answer[0].rdtype == dns.rdatatype.SOA
    assert (await ask(part, ZONE, "NS", tcp=tcp)).answer[0][0].target.to_text() == f"ns1.{ZONE}."
    assert (await ask(part, f"ns1.{ZONE}", tcp=tcp)).rcode() == dns.rcode.NOERROR


async def test_no_such_name_no_such_type_and_no_such_zone(part: DnsPart) -> None:
    missing = await ask(part, f"mc1.{ZONE}")
    assert missing.rcode() == dns.rcode.NXDOMAIN and missing.authority[0].rdtype == dns.rdatatype.SOA
    nodata = await ask(part, f"ns1.{ZONE}", "TXT")
    assert nodata.rcode() == dns.rcode.NOERROR and not nodata.answer and nodata.authority
    assert (await ask(part, "example.org")).rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize("tcp", [False, True])
async def test_an_update_publishes_and_raises_the_serial(part: DnsPart, tcp: bool) -> None:
    before = part.zone.serial
    message = update()
    message.absent("mc1")
    message.add("mc1", 60, "A", "192.0.2.1")
    message.add("mc1", 60, "TXT", '"zlh-owner=srv-1"')
    message.add("_minecraft._tcp.mc1", 60, "SRV", "0 5 25570 mc1.play.example.")
    assert await send(part, message, tcp=tcp) == "NOERROR"
    assert [r.to_text() for r in (await ask(part, f"MC1.{ZONE}")).answer[0]] == ["192.0.2.1"]
    assert part.zone.serial == before + 1
    assert (await ask(part, f"_tcp.mc1.{ZONE}")).rcode() == dns.rcode.NOERROR  # an empty name between two others exists
    log = part.inspect()["updates"][-1]
    assert log["rcode"] == "NOERROR" and log["changed"] and log["names"] == [f"_minecraft._tcp.mc1.{ZONE}", f"mc1.{ZONE}"]


async def test_the_same_update_again_changes_nothing(part: DnsPart) -> None:
    for _ in range(2):
        message = update()
        message.replace("mc1", 60, "A", "192.0.2.1")
        assert await send(part, message) == "NOERROR"
    serial = part.zone.serial
    message = update()
    message.add("mc1", 60, "A", "192.0.2.1")
    assert await send(part, message) == "NOERROR"
    assert part.zone.serial == serial


def _seed(part: DnsPart) -> None:
    part.zone.put(dns.name.from_text(f"mc1.{ZONE}"), "A", ["192.0.2.1", "192.0.2.2"], 60)
    part.zone.put(dns.name.from_text(f"mc1.{ZONE}"), "TXT", ['"owner=a"'], 60)


@pytest.mark.parametrize(
    ("method", "arguments", "rcode"),
    [
        ("present", ("mc1",), "NOERROR"),
        ("present", ("mc2",), "NXDOMAIN"),
        ("present", ("mc1", "A"), "NOERROR"),
        ("present", ("mc1", "AAAA"), "NXRRSET"),
        ("present", ("mc2", "A"), "NXRRSET"),
        ("absent", ("mc2",), "NOERROR"),
        ("absent", ("mc1",), "YXDOMAIN"),
        ("absent", ("mc1", "AAAA"), "NOERROR"),
        ("absent", ("mc1", "A"), "YXRRSET"),
        ("present", ("mc1", "TXT", '"owner=a"'), "NOERROR"),
        ("present", ("mc1", "TXT", '"owner=b"'), "NXRRSET"),
        ("present", ("mc1", "A", "192.0.2.1", "192.0.2.2"), "NOERROR"),
        ("present", ("mc1", "A", "192.0.2.2", "192.0.2.1"), "NOERROR"),
        ("present", ("mc1", "A", "192.0.2.1"), "NXRRSET"),
        ("present", ("mc1", "A", "192.0.2.1", "192.0.2.2", "192.0.2.3"), "NXRRSET"),
        ("present", ("x.example.org.",), "NOTZONE"),
    ],
)
async def test_each_prerequisite_holds_or_nothing_is_applied(part: DnsPart, method: str, arguments: tuple[str, ...], rcode: str) -> None:
    _seed(part)
    serial = part.zone.serial
    message = update()
    getattr(message, method)(*arguments)
    message.add("new", 60, "A", "192.0.2.9")
    assert await send(part, message) == rcode
    assert values(part, f"new.{ZONE}") == (["192.0.2.9"] if rcode == "NOERROR" else [])
    assert part.zone.serial == serial + (rcode == "NOERROR")


async def test_one_failing_prerequisite_of_several_stops_all(part: DnsPart) -> None:
    _seed(part)
    message = update()
    message.present("mc1", "TXT", '"owner=a"')
    message.absent("mc1", "A")
    message.delete("mc1")
    assert await send(part, message) == "YXRRSET"
    assert len(values(part, f"mc1.{ZONE}")) == 2


async def test_deletions_of_a_record_a_set_and_a_name(part: DnsPart) -> None:
    _seed(part)
    message = update()
    message.delete("mc1", "A", "192.0.2.1")
    assert await send(part, message) == "NOERROR"
    assert values(part, f"mc1.{ZONE}") == ["192.0.2.2"]
    message = update()
    message.delete("mc1", "A")
    assert await send(part, message) == "NOERROR"
    assert values(part, f"mc1.{ZONE}") == [] and values(part, f"mc1.{ZONE}", "TXT") == ['"owner=a"']
    message = update()
    message.delete("mc1")
    assert await send(part, message) == "NOERROR"
    assert (await ask(part, f"mc1.{ZONE}", "TXT")).rcode() == dns.rcode.NXDOMAIN
    serial = part.zone.serial
    message = update()
    message.delete("mc1")
    assert await send(part, message) == "NOERROR"
    assert part.zone.serial == serial


async def test_the_apex_keeps_its_soa_and_last_name_server(part: DnsPart) -> None:
    for arguments in [("@",), ("@", "SOA"), ("@", "NS"), ("@", "NS", f"ns1.{ZONE}.")]:
        message = update()
        message.delete(*arguments)
        assert await send(part, message) == "NOERROR"
    assert (await ask(part, ZONE, "SOA")).answer and (await ask(part, ZONE, "NS")).answer


async def test_an_alias_excludes_everything_else_and_is_followed(part: DnsPart) -> None:
    _seed(part)
    message = update()
    message.add("mc1", 60, "CNAME", f"ns1.{ZONE}.")
    message.add("alias", 60, "CNAME", f"mc1.{ZONE}.")
    message.add("alias", 60, "A", "192.0.2.9")
    assert await send(part, message) == "NOERROR"
    assert values(part, f"mc1.{ZONE}", "CNAME") == [] and values(part, f"alias.{ZONE}") == []
    answer = (await ask(part, f"alias.{ZONE}")).answer
    assert [rrset.rdtype for rrset in answer] == [dns.rdatatype.CNAME, dns.rdatatype.A]


async def test_a_wildcard_serves_names_that_do_not_exist(part: DnsPart) -> None:
    await part.manipulate("replace", {"name": "*.dev", "rtype": "A", "value": "192.0.2.7"})
    await part.manipulate("replace", {"name": "own.dev", "rtype": "TXT", "value": '"x"'})
    answer = (await ask(part, f"any.dev.{ZONE}")).answer[0]
    assert answer.name.to_text() == f"any.dev.{ZONE}." and answer[0].to_text() == "192.0.2.7"
    assert not (await ask(part, f"own.dev.{ZONE}")).answer
    assert (await ask(part, f"x.own.dev.{ZONE}")).rcode() == dns.rcode.NXDOMAIN


async def test_a_wrong_zone_or_opcode_is_refused(part: DnsPart) -> None:
    assert await send(part, dns.update.UpdateMessage("example.org")) == "NOTAUTH"
    query = dns.message.make_query(ZONE, "SOA")
    query.set_opcode(dns.opcode.NOTIFY)
    assert (await dns.asyncquery.udp(query, "127.0.0.1", port=part.port, timeout=2)).rcode() == dns.rcode.NOTIMP


async def test_an_unsigned_update_is_refused(part: DnsPart) -> None:
    message = update()
    message.add("mc1", 60, "A", "192.0.2.1")
    assert await send(part, message, None) == "REFUSED"
    assert values(part, f"mc1.{ZONE}") == []


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (dns.tsig.Key("stranger", SECRET, "hmac-sha256"), dns.tsig.PeerBadKey),
        (dns.tsig.Key("zlh", SECRET, "hmac-sha512"), dns.tsig.PeerBadKey),
        (dns.tsig.Key("zlh", "b3RoZXI=", "hmac-sha256"), dns.tsig.PeerBadSignature),
    ],
)
async def test_a_bad_signature_is_notauth_and_says_why(part: DnsPart, key: dns.tsig.Key, error: type[Exception]) -> None:
    message = update()
    message.add("mc1", 60, "A", "192.0.2.1")
    with pytest.raises(error):
        await send(part, message, key, tcp=True)
    assert values(part, f"mc1.{ZONE}") == []
    raw = update()
    raw.add("mc1", 60, "A", "192.0.2.1")
    raw.use_tsig(key)
    reader, writer = await asyncio.open_connection("127.0.0.1", part.port)
    wire = raw.to_wire()
    writer.write(len(wire).to_bytes(2, "big") + wire)
    answer = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")), keyring=False)
    assert answer.rcode() == dns.rcode.NOTAUTH and answer.id == raw.id
    writer.close()


async def test_a_clock_that_is_off_is_badtime(part: DnsPart, monkeypatch: pytest.MonkeyPatch) -> None:
    message = update()
    message.use_tsig(KEY)
    with monkeypatch.context() as late:
        late.setattr("dns.message.time.time", lambda: 1_000_000.0)
        wire = message.to_wire()
    reader, writer = await asyncio.open_connection("127.0.0.1", part.port)
    writer.write(len(wire).to_bytes(2, "big") + wire)
    data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    with pytest.raises(dns.tsig.PeerBadTime):
        dns.message.from_wire(data, keyring=KEY, request_mac=message.mac or b"")
    signed = dns.message.from_wire(data, keyring=False).tsig
    assert signed is not None and signed[0].mac and len(signed[0].other) == 6  # signed, and with the server's time
    writer.close()


async def test_a_signed_answer_is_signed(part: DnsPart) -> None:
    message = update()
    message.add("mc1", 60, "A", "192.0.2.1")
    message.use_tsig(KEY)
    assert (await dns.asyncquery.tcp(message, "127.0.0.1", port=part.port, timeout=2)).had_tsig


async def test_the_whole_zone_is_transferred(part: DnsPart) -> None:
    _seed(part)
    zone = await transfer(part)
    assert sorted(r.to_text() for r in zone.find_rdataset(f"mc1.{ZONE}.", "A")) == ["192.0.2.1", "192.0.2.2"]
    soa = zone.get_soa()
    assert soa is not None and soa.serial == part.zone.serial


async def test_a_big_zone_takes_several_signed_messages(part: DnsPart) -> None:
    for number in range(1500):
        part.zone.put(dns.name.from_text(f"mc{number}.{ZONE}"), "TXT", [f'"zlh-owner=00000000-0000-0000-0000-{number:012d}"'], 60)
    part.zone.put(dns.name.from_text(f"many.{ZONE}"), "TXT", [f'"{number:0200d}"' for number in range(400)], 60)
    query = dns.message.make_query(ZONE, "AXFR")
    query.use_tsig(KEY)
    assert len(part.server.transfer(_request(query))) > 3
    zone = await transfer(part)
    assert sum(1 for name in zone if name.to_text().startswith("mc")) == 1500
    assert len(zone.find_rdataset(f"many.{ZONE}.", "TXT")) == 400


def _request(query: dns.message.QueryMessage) -> Any:
    from flows.lab.dns.server import Request

    wire = query.to_wire()
    return Request(dns.message.from_wire(wire, keyring=KEY), f"AXFR {ZONE}", tcp=True)


async def test_a_transfer_needs_the_key_and_tcp(part: DnsPart) -> None:
    with pytest.raises(dns.exception.DNSException, match="REFUSED"):
        await transfer(part, None)
    assert (await ask(part, ZONE, "AXFR", tcp=True)).rcode() == dns.rcode.REFUSED
    assert (await ask(part, ZONE, "AXFR")).rcode() == dns.rcode.FORMERR


async def test_an_answer_too_big_for_udp_is_truncated(part: DnsPart) -> None:
    part.zone.put(dns.name.from_text(f"many.{ZONE}"), "TXT", [f'"{number:0200d}"' for number in range(20)], 60)
    assert (await ask(part, f"many.{ZONE}", "TXT")).flags & dns.flags.TC
    whole = await ask(part, f"many.{ZONE}", "TXT", tcp=True)
    assert not whole.flags & dns.flags.TC and len(whole.answer[0]) == 20


@pytest.mark.parametrize("wire", [b"", b"x", b"\x00" * 12, b"\x12\x34\x01\x00\x00\x01" + bytes(6), b"\x12\x34\x80\x00" + bytes(8), bytes(range(64))])
async def test_rubbish_neither_crashes_nor_silences_it(part: DnsPart, wire: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", part.port)
    writer.write(len(wire).to_bytes(2, "big") + wire)
    writer.write_eof()
    await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert (await ask(part, ZONE, "SOA")).rcode() == dns.rcode.NOERROR


async def test_records_can_be_dropped_corrupted_and_duplicated(part: DnsPart) -> None:
    _seed(part)
    serial = part.zone.serial
    await part.manipulate("replace", {"name": f"mc1.{ZONE}", "rtype": "A", "value": "203.0.113.1"})
    assert values(part, f"mc1.{ZONE}") == ["203.0.113.1"]
    await part.manipulate("add", {"name": "mc1", "rtype": "A", "value": "203.0.113.2"})
    assert values(part, f"mc1.{ZONE}") == ["203.0.113.1", "203.0.113.2"]
    await part.manipulate("delete", {"name": "mc1", "rtype": "A"})
    assert values(part, f"mc1.{ZONE}") == [] and values(part, f"mc1.{ZONE}", "TXT") == ['"owner=a"']
    await part.manipulate("delete", {"name": "mc1"})
    assert part.zone.serial == serial + 4


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("delete", {"name": "mc9"}),
        ("delete", {"name": ""}),
        ("replace", {"name": "mc1", "rtype": "A", "value": "no address"}),
        ("replace", {"name": "mc1", "rtype": "NOPE", "value": "x"}),
        ("replace", {"name": "mc1", "value": "x"}),
        ("add", {"name": "a..b", "rtype": "A", "value": "192.0.2.1"}),
        ("explode", {"name": "mc1"}),
    ],
)
async def test_bad_manipulations_are_refused(part: DnsPart, op: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(PartError):
        await part.manipulate(op, arguments)


async def test_records_survive_a_restart_on_the_same_port(part: DnsPart) -> None:
    _seed(part)
    port = part.port
    await part.restart()
    assert part.port == port
    assert (await ask(part, f"mc1.{ZONE}")).answer


async def test_unreachable_and_hanging(part: DnsPart, faults: Faults) -> None:
    faults.arm("dns", Mode.UNREACHABLE, call="AXFR *", count=1)
    with pytest.raises((EOFError, OSError, dns.exception.DNSException)):
        await transfer(part)
    faults.arm("dns", Mode.HANG, count=1)
    with pytest.raises(dns.exception.Timeout):
        await dns.asyncquery.udp(dns.message.make_query(ZONE, "SOA"), "127.0.0.1", port=part.port, timeout=0.2)
    faults.arm("dns", Mode.ERROR, call="QUERY mc1.*", count=1)
    assert (await ask(part, f"mc1.{ZONE}")).rcode() == dns.rcode.SERVFAIL
    faults.arm("dns", Mode.SLOW, seconds=0.05, count=1)
    assert (await ask(part, ZONE, "SOA")).rcode() == dns.rcode.NOERROR


async def test_a_held_update_arrives_late(part: DnsPart, faults: Faults, eventually: Any) -> None:
    fault = faults.arm("dns", Mode.HOLD, call=f"UPDATE mc1.{ZONE}", count=1)
    first, second = update(), update()
    for message in (first, second):
        message.absent("mc1", "A")
        message.add("mc1", 60, "A", "192.0.2.1")
        message.use_tsig(KEY)
    held = asyncio.create_task(dns.asyncquery.tcp(first, "127.0.0.1", port=part.port, timeout=10))
    await eventually(lambda: fault.hits == 1)
    assert (await dns.asyncquery.tcp(second, "127.0.0.1", port=part.port, timeout=10)).rcode() == dns.rcode.NOERROR
    faults.clear()
    assert (await held).rcode() == dns.rcode.YXRRSET


@pytest.mark.parametrize("tcp", [False, True])
async def test_the_answer_is_lost_after_the_effect(part: DnsPart, faults: Faults, tcp: bool, eventually: Any) -> None:
    faults.arm("dns", Mode.LOSE_ANSWER, call=f"UPDATE mc1.{ZONE}", count=1)
    message = update()
    message.add("mc1", 60, "A", "192.0.2.1")
    message.use_tsig(KEY)
    call = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    with pytest.raises((EOFError, dns.exception.Timeout)):
        await call(message, "127.0.0.1", port=part.port, timeout=0.3)
    await eventually(lambda: values(part, f"mc1.{ZONE}") == ["192.0.2.1"])


async def test_a_partial_transfer_breaks_off(part: DnsPart, faults: Faults) -> None:
    _seed(part)
    faults.arm("dns", Mode.PARTIAL, count=1)
    with pytest.raises((EOFError, dns.exception.DNSException)):
        await transfer(part)
    await transfer(part)


@pytest.mark.parametrize("field", [{"tsig_secret": "not base64!"}, {"tsig_algorithm": "rot13"}, {"zone": "a..b"}])
async def test_a_bad_configuration_is_refused_without_the_secret(
    lab_config: Callable[..., LabConfig], world: World, faults: Faults, field: dict[str, str]
) -> None:
    with pytest.raises(BadInput) as refused:
        await start(lab_config(dns=field), world, faults)
    assert "not base64" not in str(refused.value)
