"""The Cloudflare client against the lab's double of its API, over real HTTP: the RFC 2136 client's promises, and what only this API can do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from flows.bootstrap import name_server
from flows.clients.cloudflare_dns import CloudflareDns
from flows.clients.dns import DnsClient
from flows.domain.sources import Record
from flows.errors import (
    AmbiguousEffect,
    AutomationError,
    BadInput,
    Busy,
    Conflict,
    Forbidden,
    MisconfiguredSetting,
    RateLimited,
    Unauthorized,
    Unproven,
    Unreachable,
)
from flows.lab.cloudflare import CloudflarePart
from flows.lab.config import CloudflareConfig
from flows.lab.faults import Faults, Mode
from flows.settings import DnsSettings, Settings
from tests.unit.clients import test_dns as shared
from tests.unit.clients.test_dns import (  # noqa: F401 - tests of the same promises, run here against this client
    NAME,
    WANTED,
    test_a_foreign_text_claims_nothing,
    test_a_name_is_published_read_and_withdrawn,
    test_a_record_that_appeared_meanwhile_is_a_conflict,
    test_another_owners_name_is_not_withdrawn,
    test_one_kind_of_address_replaces_another,
    test_the_same_call_twice_does_nothing_the_second_time,
    test_two_publishers_one_wins,
    test_what_changed_meanwhile_is_a_conflict_and_stays,
)

TOKEN, READER, ZONE_ID = "cf-token-0123456789", "cf-reader-0123456789", "0123456789abcdef0123456789abcdef"
Make = Callable[..., Any]


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def make(faults: Faults) -> AsyncIterator[Make]:
    """A double with settings of its own."""
    made: list[CloudflarePart] = []

    async def build(**changes: Any) -> CloudflarePart:
        part = CloudflarePart(CloudflareConfig(**({"token": SecretStr(TOKEN), "reader_token": SecretStr(READER)} | changes)), faults)
        await part.site.open()
        made.append(part)
        return part

    yield build
    for part in made:
        await part.stop()


@pytest.fixture
async def lab(make: Make) -> CloudflarePart:
    part: CloudflarePart = await make()
    return part


@pytest.fixture
async def client_of(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., CloudflareDns]]:
    made: list[CloudflareDns] = []

    def build(lab: CloudflarePart, **changes: Any) -> CloudflareDns:
        values = {"provider": "cloudflare", "cloudflare_url": lab.endpoints["url"], "cloudflare_zone_id": ZONE_ID, "timeout_s": 3.0}
        made.append(CloudflareDns(DnsSettings(**({"cloudflare_token": SecretStr(TOKEN)} | values | changes))))
        return made[-1]

    monkeypatch.setattr(shared, "client_of", build)
    yield build
    for client in made:
        await client.close()


@pytest.fixture
def client(lab: CloudflarePart, client_of: Callable[..., CloudflareDns]) -> CloudflareDns:
    return client_of(lab)


def batches(lab: CloudflarePart) -> list[dict[str, Any]]:
    return [write for write in lab.writes if write["call"].endswith("/batch")]


async def test_its_name_is_not_another_names(client: CloudflareDns) -> None:
    longer = f"x{NAME}"
    await client.publish(longer, [Record(longer, "A", "192.0.2.7")], "srv-7", ())
    assert await client.records(NAME) == ()
    await client.publish(NAME, WANTED, "srv-1", ())
    assert (await client.zone()).owners == {NAME: "srv-1", longer: "srv-7"}


async def test_a_listing_of_several_pages_is_whole(make: Make, client_of: Callable[..., CloudflareDns]) -> None:
    lab = await make(most_per_page=7)
    for index in range(30):
        await lab.manipulate("add", {"name": f"s{index}.play.example", "rtype": "A", "value": "192.0.2.1"})
    assert len((await client_of(lab).zone()).records) == 30


async def test_a_page_that_lacks_records_proves_nothing(make: Make, client_of: Callable[..., CloudflareDns], faults: Faults) -> None:
    lab = await make(most_per_page=4)
    for index in range(10):
        await lab.manipulate("add", {"name": f"s{index}.play.example", "rtype": "A", "value": "192.0.2.1"})
    client = client_of(lab)
    faults.arm("dns", Mode.PARTIAL)
    with pytest.raises(Unproven):
        await client.zone()
    with pytest.raises(Unproven):
        await client.publish("s1.play.example", [], "srv-1", ())
    assert lab.writes == []


async def test_an_empty_zone_is_known_to_be_empty(client: CloudflareDns) -> None:
    assert (await client.zone()).records == {}


async def test_a_proxied_record_is_not_what_it_says(client: CloudflareDns, lab: CloudflarePart) -> None:
    """Its public answer is Cloudflare's own address, where no player gets through."""
    await lab.manipulate("add", {"name": NAME, "rtype": "A", "value": "192.0.2.1", "proxied": True})
    (record,) = await client.records(NAME)
    assert record.value != "192.0.2.1" and "proxied" in record.value
    await client.publish(NAME, WANTED, "srv-1", [record])
    assert WANTED[0] in await client.records(NAME)


async def test_a_lost_answer_is_ambiguous_the_effect_is_there_and_nothing_is_sent_twice(
    client: CloudflareDns, lab: CloudflarePart, faults: Faults
) -> None:
    faults.arm("dns", Mode.LOSE_ANSWER, call="POST *", count=1)
    with pytest.raises(AmbiguousEffect):
        await client.publish(NAME, WANTED, "srv-1", ())
    assert (await client.zone()).owners == {NAME: "srv-1"} and len(batches(lab)) == 1


async def test_a_gateways_error_for_a_write_is_ambiguous_and_for_a_read_busy(client: CloudflareDns, faults: Faults) -> None:
    faults.arm("dns", Mode.ERROR, call="POST *", count=1, status=502)
    with pytest.raises(AmbiguousEffect):
        await client.publish(NAME, WANTED, "srv-1", ())
    faults.arm("dns", Mode.ERROR, call="GET *", count=1, status=503)
    with pytest.raises(Busy):
        await client.zone()


async def test_a_hanging_api_ends_at_the_time_out(lab: CloudflarePart, client_of: Callable[..., CloudflareDns], faults: Faults) -> None:
    client = client_of(lab, timeout_s=0.3)
    faults.arm("dns", Mode.HANG, call="POST *")
    with pytest.raises(AmbiguousEffect):
        await client.publish(NAME, WANTED, "srv-1", ())
    faults.arm("dns", Mode.HANG)
    with pytest.raises(Unreachable):
        await client.zone()


async def test_whether_we_are_alone_is_asked_and_unknown_is_ambiguous(client: CloudflareDns, lab: CloudflarePart, faults: Faults) -> None:
    publication = asyncio.create_task(client.publish(NAME, WANTED, "srv-1", ()))
    while not batches(lab):
        await asyncio.sleep(0)
    faults.arm("dns", Mode.UNREACHABLE, call="GET *")
    with pytest.raises(AmbiguousEffect, match="somebody else"):
        await publication


async def test_a_rival_at_the_same_moment_makes_it_a_conflict_and_ours_goes(
    client: CloudflareDns, lab: CloudflarePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = client._batch

    async def beaten(what: str, gone: Any, posts: Any) -> list[str]:
        monkeypatch.setattr(client, "_batch", send)
        await lab.manipulate("add", {"name": f"_zlh.{NAME}", "rtype": "TXT", "value": "zlh-owner=srv-2"})
        return await send(what, gone, posts)

    monkeypatch.setattr(client, "_batch", beaten)
    with pytest.raises(Conflict, match="same moment"):
        await client.publish(NAME, WANTED, "srv-1", ())
    assert (await client.zone()).owners == {NAME: "srv-2"} and NAME not in (await client.zone()).records


async def test_a_record_that_went_between_look_and_batch_is_a_conflict_and_nothing_is_done(
    client: CloudflareDns, lab: CloudflarePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.publish(NAME, WANTED, "srv-1", ())
    seen, send = await client.records(NAME), client._batch

    async def late(what: str, gone: Any, posts: Any) -> list[str]:
        await lab.manipulate("delete", {"name": NAME, "rtype": "A"})
        return await send(what, gone, posts)

    monkeypatch.setattr(client, "_batch", late)
    with pytest.raises(Conflict, match="81044"):
        await client.withdraw(NAME, "srv-1", seen)
    assert (await client.zone()).owners == {NAME: "srv-1"}


async def test_too_many_calls_say_when_to_come_again(make: Make, client_of: Callable[..., CloudflareDns]) -> None:
    lab = await make(requests=2, window_s=30.0)
    client = client_of(lab)
    await client.zone()
    await client.zone()
    began = time.monotonic()
    with pytest.raises(RateLimited) as caught:
        await client.zone()
    assert caught.value.retry_after is not None and 1 <= caught.value.retry_after <= 31
    assert time.monotonic() - began < 2  # nobody waits for it in a call


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"cloudflare_token": SecretStr("wrong-token-0123")}, Unauthorized, "ZLH_DNS__CLOUDFLARE_TOKEN"),
        ({"cloudflare_zone_id": "f" * 32}, Forbidden, "9109"),
    ],
)
async def test_a_refused_credential_names_the_setting_and_not_the_secret(
    lab: CloudflarePart, client_of: Callable[..., CloudflareDns], changes: dict[str, Any], error: type[AutomationError], match: str
) -> None:
    client = client_of(lab, **changes)
    for call in (client.zone(), client.publish(NAME, WANTED, "srv-1", ())):
        with pytest.raises(error, match=match) as caught:
            await call
        assert "wrong-token" not in str(caught.value) and TOKEN not in str(caught.value)


async def test_a_token_that_may_only_read_reads(lab: CloudflarePart, client_of: Callable[..., CloudflareDns]) -> None:
    client = client_of(lab, cloudflare_token=SecretStr(READER))
    assert (await client.zone()).owners == {}
    with pytest.raises(Unauthorized, match="10000"):
        await client.publish(NAME, WANTED, "srv-1", ())


async def test_other_credentials_of_the_library_are_not_taken(
    lab: CloudflarePart, client_of: Callable[..., CloudflareDns], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLOUDFLARE_API_KEY", "CLOUDFLARE_EMAIL", "CLOUDFLARE_API_USER_SERVICE_KEY"):
        monkeypatch.setenv(name, "somebody-elses")
    assert (await client_of(lab).zone()).owners == {}


@pytest.mark.parametrize(
    ("field", "value", "setting"),
    [
        ("cloudflare_token", SecretStr(""), "ZLH_DNS__CLOUDFLARE_TOKEN"),
        ("cloudflare_token", SecretStr("two words"), "ZLH_DNS__CLOUDFLARE_TOKEN"),
        ("cloudflare_zone_id", "play.example", "ZLH_DNS__CLOUDFLARE_ZONE_ID"),
        ("cloudflare_url", "http://api.cloudflare.example/client/v4", "ZLH_DNS__CLOUDFLARE_URL"),
        ("zone", "a..b", "ZLH_DNS__ZONE"),
        ("ttl_s", 30, "ZLH_DNS__TTL_S"),
    ],
)
async def test_a_setting_that_cannot_be_right_is_named(
    lab: CloudflarePart, client_of: Callable[..., CloudflareDns], field: str, value: object, setting: str
) -> None:
    with pytest.raises(MisconfiguredSetting, match=setting):
        client_of(lab, **{field: value})


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
async def test_what_may_not_be_written_is_not_sent(
    client: CloudflareDns, lab: CloudflarePart, name: str, wanted: tuple[Record, ...], owner: str
) -> None:
    with pytest.raises(BadInput):
        await client.publish(name, wanted, owner, ())
    assert lab.writes == []


async def test_nobody_listening_is_unreachable(client: CloudflareDns, lab: CloudflarePart) -> None:
    await lab.stop()
    with pytest.raises(Unreachable):
        await client.zone()
    with pytest.raises(Unreachable):
        await client.publish(NAME, WANTED, "srv-1", ())


async def test_an_answer_without_end_is_cut_off(client: CloudflareDns, lab: CloudflarePart, monkeypatch: pytest.MonkeyPatch) -> None:
    await client.publish(NAME, WANTED, "srv-1", ())
    monkeypatch.setattr("flows.clients.cloudflare_dns.MAX_BYTES", 200)
    with pytest.raises(Unreachable):
        await client.zone()


@pytest.mark.parametrize(
    "rubbish", [b"", b"null", b"[]", b"<html>", b'{"success": true}', b'{"success": true, "result": [{}], "result_info": {"total_count": 1}}']
)
async def test_what_is_no_listing_is_not_an_empty_one(client_of: Callable[..., CloudflareDns], rubbish: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(rubbish) + rubbish)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)

    class Here:
        endpoints = {"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/client/v4"}  # noqa: RUF012 - a stand-in

    client = client_of(Here())
    try:
        with pytest.raises((Unproven, Unreachable)):
            await client.zone()
        with pytest.raises(AmbiguousEffect):
            await client._batch("a batch", [], [{"name": NAME}])
    finally:
        server.close()
    await server.wait_closed()


async def test_the_setting_chooses(lab: CloudflarePart) -> None:
    mine = Settings()
    cloudflare = mine.dns.model_copy(update={"provider": "cloudflare", "cloudflare_token": SecretStr(TOKEN), "cloudflare_zone_id": ZONE_ID})
    chosen = [name_server(mine), name_server(mine.model_copy(update={"dns": cloudflare}))]
    assert [type(client) for client in chosen] == [DnsClient, CloudflareDns]
    for client in chosen:
        await client.close()


# ── the double itself, as the API's users know it ──


async def test_the_doubles_errors_are_in_cloudflares_form(lab: CloudflarePart) -> None:
    url = f"{lab.endpoints['url']}/zones/{ZONE_ID}/dns_records"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient() as http:

        async def codes(body: dict[str, Any] | None = None, **options: Any) -> tuple[int, list[int]]:
            method = "POST" if body is not None else "GET"
            answer = await http.request(method, options.pop("url", url), json=body, **({"headers": headers} | options))
            content = answer.json()
            assert content["success"] is (answer.status_code == 200) and "result" in content
            found = [e["code"] for e in content["errors"]] + [c["code"] for e in content["errors"] for c in e.get("error_chain", ())]
            return answer.status_code, found

        record = {"type": "A", "name": "a.play.example", "content": "192.0.2.1", "ttl": 60}
        assert await codes(record) == (200, [])
        assert await codes(record) == (400, [81058])
        assert await codes({**record, "type": "CNAME", "content": "x.example"}) == (400, [81053])
        assert await codes({**record, "content": "nonsense"}) == (400, [1004, 9005])
        assert await codes({**record, "ttl": 5}) == (400, [1004, 9021])
        assert await codes(headers={"Authorization": "Bearer wrong"}) == (403, [9109])
        assert await codes(headers={"Authorization": "Basic x"}) == (400, [6003, 6111])
        assert await codes(url=f"{lab.endpoints['url']}/zones/short/dns_records") == (400, [7003, 7003])
        assert await codes(url=f"{url}/{'0' * 32}") == (404, [81044])
        assert await codes({"deletes": [{"id": "0" * 32}]}, url=f"{url}/batch") == (400, [81044])
        half = {"posts": [{**record, "name": "b"}, {**record, "content": "nonsense"}]}
        assert await codes(half, url=f"{url}/batch") == (400, [1004, 9005])
        assert [entry["name"] for entry in lab.inspect()["records"]] == ["a.play.example"]
