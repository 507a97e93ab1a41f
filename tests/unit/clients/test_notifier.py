"""The notifier against a webhook receiver of flesh and blood: what is posted, what each answer means, and what never leaks."""

from __future__ import annotations

import asyncio
import logging
import smtplib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from aiohttp import web
from pydantic import SecretStr

from flows.clients.notifier import LIMIT, SETTING_OF, DiscordNotifier, compose
from flows.domain.event import Channel
from flows.domain.ports import Delivery
from flows.settings import NotifySettings

#: A URL of Apprise imports all its plugins; slixmpp of one of them still uses imghdr.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

TOKEN = "tOkEn-that-nobody-may-see"


class Receiver:
    """Answers ``status`` with ``body`` and ``headers``, after ``delay_s``."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, Any]] = []
        self.status, self.body, self.headers, self.delay_s, self.cut = 204, b"", {}, 0.0, False
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.posts.append((request.path, await request.json()))
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.cut:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/api/webhooks/{id}/{token}", receiver.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    receiver.url = f"http://{host}:{port}/api/webhooks"
    yield receiver
    await runner.cleanup()


def settings(base_url: str, **changes: Any) -> NotifySettings:
    hooks = {name: SecretStr(f"{number}/{TOKEN}") for number, name in enumerate(SETTING_OF.values(), 1001)}
    return NotifySettings(**{"base_url": base_url, "ping_users": ("42", "43"), "timeout_s": 2.0, **hooks, **changes})


@pytest.fixture
async def notifier(receiver: Receiver) -> AsyncIterator[DiscordNotifier]:
    notifier = DiscordNotifier(settings(receiver.url))
    yield notifier
    await notifier.close()


async def say(notifier: DiscordNotifier, text: str = "alpha was repaired", *, ping: bool = False) -> Delivery:
    return await notifier.send("alerts-repairs", text, ping=ping, key="repair/7")


async def test_posts_once_with_the_key_in_the_footer(notifier: DiscordNotifier, receiver: Receiver) -> None:
    assert await say(notifier) == Delivery(delivered=True, status=204)
    ((path, payload),) = receiver.posts
    assert path == f"/api/webhooks/1002/{TOKEN}"
    assert payload == {"content": "alpha was repaired\n-# repair/7", "allowed_mentions": {"parse": []}}


async def test_every_channel_has_its_own_webhook(notifier: DiscordNotifier, receiver: Receiver) -> None:
    for channel in Channel:
        assert (await notifier.send(channel, "x", ping=False, key="k")).delivered
    assert len({path for path, _ in receiver.posts}) == len(Channel)


async def test_a_ping_names_the_users_and_nobody_else(notifier: DiscordNotifier, receiver: Receiver) -> None:
    await say(notifier, "tail: @everyone <@&9> <@77> @here", ping=True)
    payload = receiver.posts[0][1]
    assert payload["allowed_mentions"] == {"parse": [], "users": ["42", "43"]}
    assert payload["content"].startswith("<@42> <@43>\n")
    await say(notifier, "tail: @everyone", ping=False)
    assert receiver.posts[1][1]["allowed_mentions"] == {"parse": []}


async def test_one_post_of_at_most_2000_characters(notifier: DiscordNotifier, receiver: Receiver) -> None:
    await say(notifier, "line\n" * 4000, ping=True)
    assert len(receiver.posts) == 1
    content = receiver.posts[0][1]["content"]
    assert len(content) == LIMIT
    assert content.endswith("…\n-# repair/7")


@pytest.mark.parametrize("text", ["😀" * 3000, "ä" * 1999, "", "x" * 1986])
def test_however_characters_are_counted(text: str) -> None:
    content = compose(text, ("42",), "k" * 500)
    assert len(content.encode("utf-16-le")) // 2 <= LIMIT
    content.encode("utf-8")  # no half of a pair is left


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected"),
    [
        (200, b"{}", {}, Delivery(delivered=True, status=200)),
        (
            429,
            b'{"retry_after": 0.7, "global": false}',
            {"Retry-After": "3"},
            Delivery(delivered=False, status=429, retry_after_s=3.0, reason="Discord asks us to slow down"),
        ),
        (429, b'{"retry_after": 0.7}', {}, Delivery(delivered=False, status=429, retry_after_s=0.7, reason="Discord asks us to slow down")),
        (429, b"busy", {"Retry-After": "soon"}, Delivery(delivered=False, status=429, reason="Discord asks us to slow down")),
        (500, b"", {}, Delivery(delivered=False, status=500, reason="Discord failed with 500")),
        (502, b"", {}, Delivery(delivered=False, status=502, ambiguous=True, reason="Discord failed with 502")),
    ],
)
async def test_what_an_answer_means(
    notifier: DiscordNotifier, receiver: Receiver, status: int, body: bytes, headers: dict[str, str], expected: Delivery
) -> None:
    receiver.status, receiver.body, receiver.headers = status, body, headers
    assert await say(notifier) == expected
    assert len(receiver.posts) == 1, "it never repeats by itself"


@pytest.mark.parametrize(
    ("status", "body", "names"),
    [
        (404, b'{"message": "Unknown Webhook", "code": 10015}', "ZLH_NOTIFY__REPAIRS"),
        (401, b'{"message": "Invalid Webhook Token", "code": 50027}', "ZLH_NOTIFY__REPAIRS"),
        (400, b'{"code": 50035}', "50035"),
        (302, b"", "ZLH_NOTIFY__BASE_URL"),
    ],
)
async def test_refusals_are_permanent_and_name_the_setting(
    notifier: DiscordNotifier, receiver: Receiver, status: int, body: bytes, names: str
) -> None:
    receiver.status, receiver.body, receiver.headers = status, body, {"Location": receiver.url + "/elsewhere/x"}
    delivery = await say(notifier)
    assert (delivery.delivered, delivery.permanent, delivery.status) == (False, True, status)
    assert names in delivery.reason
    assert len(receiver.posts) == 1, "a redirect would carry the message elsewhere"


async def test_a_lost_answer_is_ambiguous(notifier: DiscordNotifier, receiver: Receiver) -> None:
    receiver.cut = True
    delivery = await say(notifier)
    assert (delivery.delivered, delivery.ambiguous, delivery.permanent) == (False, True, False)


async def test_a_late_answer_is_ambiguous(receiver: Receiver) -> None:
    notifier = DiscordNotifier(settings(receiver.url, timeout_s=0.3))
    receiver.delay_s = 5
    delivery = await say(notifier)
    assert (delivery.delivered, delivery.ambiguous) == (False, True)
    await notifier.close()


async def test_no_connection_is_not_ambiguous() -> None:
    notifier = DiscordNotifier(settings("http://127.0.0.1:1/api/webhooks"))
    delivery = await say(notifier)
    assert (delivery.delivered, delivery.ambiguous, delivery.permanent) == (False, False, False)
    await notifier.close()


@pytest.mark.parametrize("value", ["", "https://discord.com/api/webhooks/1/x", "nonsense", "1/"])
async def test_a_missing_or_wrong_webhook_names_its_setting(receiver: Receiver, value: str) -> None:
    notifier = DiscordNotifier(settings(receiver.url, repairs=SecretStr(value)))
    delivery = await say(notifier)
    assert (delivery.delivered, delivery.permanent) == (False, True)
    assert "ZLH_NOTIFY__REPAIRS" in delivery.reason
    assert not value or value not in delivery.reason
    assert not receiver.posts
    await notifier.close()


async def test_an_unknown_channel_is_permanent(notifier: DiscordNotifier) -> None:
    delivery = await notifier.send("no-such", "x", ping=False, key="k")
    assert delivery.permanent


@pytest.mark.parametrize("mishap", ["none", "404", "cut", "refused"])
async def test_the_webhook_is_logged_at_no_level(receiver: Receiver, caplog: pytest.LogCaptureFixture, mishap: str) -> None:
    caplog.set_level(logging.NOTSET)
    for name in ("httpx", "httpcore", "apprise", "urllib3", "asyncio"):
        caplog.set_level(logging.NOTSET, logger=name)
    url = "http://127.0.0.1:1/api/webhooks" if mishap == "refused" else receiver.url
    notifier = DiscordNotifier(settings(url, mail_url=SecretStr(f"nonsense://{TOKEN}@host")))
    receiver.status, receiver.cut = (404 if mishap == "404" else 204), mishap == "cut"
    deliveries = [await say(notifier, ping=True), await notifier.mail("critical", "subject", "text", key="k")]
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(deliveries)
    assert any(record.name.startswith("httpcore") for record in caplog.records), "the libraries did log"
    await notifier.close()


async def test_mail_goes_only_where_configured(receiver: Receiver) -> None:
    notifier = DiscordNotifier(settings(receiver.url))
    assert await notifier.mail("critical", "s", "t", key="k") is None
    await notifier.close()
    notifier = DiscordNotifier(settings(receiver.url, mail_url=SecretStr("mailto://u:p@127.0.0.1"), mail_severities=("critical",)))
    assert await notifier.mail("info", "s", "t", key="k") is None
    await notifier.close()


async def test_mail_that_cannot_be_sent_names_its_setting(receiver: Receiver) -> None:
    notifier = DiscordNotifier(settings(receiver.url, mail_url=SecretStr("nonsense://x")))
    delivery = await notifier.mail("critical", "s", "t", key="k")
    assert delivery is not None
    assert delivery.permanent
    assert "ZLH_NOTIFY__MAIL_URL" in delivery.reason
    await notifier.close()


async def test_mail_carries_subject_text_and_key(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    class Server:
        """Takes the place of a mail server, which no port of ours may be."""

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def login(self, *args: Any) -> None: ...
        def starttls(self, *args: Any, **kwargs: Any) -> None: ...
        def sendmail(self, sender: str, to: Any, message: str) -> None:
            sent.append(message)

        def quit(self) -> None: ...

    monkeypatch.setattr(smtplib, "SMTP", Server)
    url = SecretStr("mailto://127.0.0.1?from=zlh@example.org&to=op@example.org&format=text&smtp=127.0.0.1")
    notifier = DiscordNotifier(settings(receiver.url, mail_url=url))
    delivery = await notifier.mail("critical", "host down", "pve1 is down", key="host/pve1")
    assert delivery == Delivery(delivered=True)
    assert "host down" in sent[0]
    await notifier.close()


async def test_every_answer_is_closed() -> None:
    """An answer that stays open keeps its connection: after ten messages nothing would be delivered any more."""
    open_streams: set[int] = set()

    class Stream(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"{}"

        def close(self) -> None:
            open_streams.discard(id(self))

    class Transport(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            stream = Stream()
            open_streams.add(id(stream))
            kept.append(stream)
            return httpx.Response(200, stream=stream)

    kept: list[Stream] = []
    notifier = DiscordNotifier(NotifySettings(critical=SecretStr("1400000000000000001/abcdefghijklmnopqrstuvwxyz")), transport=Transport())
    assert (await notifier.send("alerts-critical", "text", ping=False, key="k")).delivered
    assert kept
    assert not open_streams
