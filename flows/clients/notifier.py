"""Messages to Discord and by mail, through Apprise. Called by ``zlh dispatch`` alone, which owns retries.

Apprise's Discord plugin hides what an outbox needs: it returns a bool, fixes Discord's host, repeats a 429 by itself, logs the webhook and
sends ``allow_mentions`` where Discord reads ``allowed_mentions``. The subclass here makes one POST and says what became of it. A webhook or
mail URL is a secret: it appears in no log at any level, no exception, no result.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import apprise
import httpx
from apprise.plugins.discord import NotifyDiscord
from pydantic import SecretStr

from flows.domain.event import Channel
from flows.domain.ports import Delivery
from flows.settings import NotifySettings

#: Discord's limit of one message. Counted in UTF-16 units, so that no way of counting exceeds it.
LIMIT = 2000
#: Users in ``allowed_mentions``, Discord's limit.
MENTION_LIMIT = 100
#: Bytes of an answer that are read.
MAX_ANSWER = 65_536

#: Which setting holds a channel's webhook.
SETTING_OF = {
    Channel.CRITICAL: "critical",
    Channel.REPAIRS: "repairs",
    Channel.BILLING: "billing",
    Channel.PROVISIONING: "provisioning",
    Channel.HEALTH: "health",
    Channel.AUDIT: "audit",
}
_WEBHOOK = re.compile(r"([A-Za-z0-9_-]+)/([A-Za-z0-9_.-]+)")
_USER = re.compile(r"[0-9]{1,20}")


class _Silence(logging.Filter):
    """Apprise logs the URLs that it is given and calls."""

    def filter(self, record: logging.LogRecord) -> bool:
        return False


logging.getLogger("apprise").addFilter(_Silence())


class Webhook(NotifyDiscord):  # type: ignore[no-untyped-call] # Apprise is typed in parts
    """One POST to one webhook; what became of it is in ``delivery``. Never repeats, waits for nothing, follows no redirect."""

    service_name = "Discord, as zlh sends to it"
    secure_protocol = "zlhdiscord"

    def __init__(self, http: httpx.BaseTransport, base_url: str, setting: str, mentions: tuple[str, ...], timeout_s: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.http, self.base_url, self.setting, self.mentions, self.timeout_s = http, base_url, setting, mentions, timeout_s
        self.delivery = Delivery(delivered=False, permanent=True, reason="nothing was sent")

    def send(self, body: str, title: str = "", *args: Any, **kwargs: Any) -> bool:
        payload = {"content": body, "allowed_mentions": {"parse": [], **({"users": list(self.mentions)} if self.mentions else {})}}
        self.delivery = self._post(payload)
        return self.delivery.delivered

    def _post(self, payload: dict[str, Any]) -> Delivery:
        timeout = {"timeout": httpx.Timeout(self.timeout_s).as_dict()}
        try:
            request = httpx.Request("POST", f"{self.base_url}/{self.webhook_id}/{self.webhook_token}", json=payload, extensions=timeout)
            # The transport itself: a client would log the URL at INFO, follow the environment's proxies and keep cookies.
            answer = self.http.handle_request(request)
            try:
                response = httpx.Response(answer.status_code, headers=answer.headers, content=_read(answer))
            finally:
                answer.close()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            return Delivery(delivered=False, reason=f"no connection to Discord ({type(error).__name__})")
        except httpx.TransportError as error:
            return Delivery(delivered=False, ambiguous=True, reason=f"no answer from Discord ({type(error).__name__})")
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            return Delivery(delivered=False, permanent=True, reason=f"{type(error).__name__}: check ZLH_NOTIFY__BASE_URL")
        return judge(response, self.setting)


def judge(response: httpx.Response, setting: str) -> Delivery:
    """What Discord's answer means for the message. ``setting`` is the variable that holds the webhook."""
    status = response.status_code
    if status in (200, 204):
        return Delivery(delivered=True, status=status)
    if status == 429:
        return Delivery(delivered=False, status=status, retry_after_s=_retry_after(response), reason="Discord asks us to slow down")
    code = _field(response, "code")
    if status in (401, 403, 404):
        meaning = "does not exist" if status == 404 else "was refused"
        remedy = f"create a webhook for the channel and set {setting} to its <id>/<token>"
        return Delivery(delivered=False, status=status, permanent=True, reason=f"the webhook {meaning} ({status}, Discord code {code}): {remedy}")
    if status >= 500:
        ambiguous = status in (502, 504)  # a gateway that does not know what became of it
        return Delivery(
            delivered=False, status=status, ambiguous=ambiguous, retry_after_s=_retry_after(response), reason=f"Discord failed with {status}"
        )
    if 300 <= status < 400:
        reason = f"answered with a redirect ({status}), which is not followed: correct ZLH_NOTIFY__BASE_URL"
        return Delivery(delivered=False, status=status, permanent=True, reason=reason)
    return Delivery(delivered=False, status=status, permanent=True, reason=f"Discord refused the message ({status}, code {code})")


class DiscordNotifier:
    """Implements :class:`flows.domain.ports.Notifier`. One instance per process; close it."""

    def __init__(self, settings: NotifySettings, *, transport: httpx.BaseTransport | None = None) -> None:
        self._settings = settings
        # A connection per message: a kept one that Discord closed meanwhile would make a delivery ambiguous for nothing.
        self._http = transport or httpx.HTTPTransport(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0, max_connections=10))

    async def close(self) -> None:
        self._http.close()

    async def send(self, channel: str, text: str, *, ping: bool, key: str) -> Delivery:
        """One POST of at most 2,000 characters, ``key`` in the footer. Never raises for what Discord or the network does.

        Nobody is pinged but the users of ``ZLH_NOTIFY__PING_USERS``, and those only with ``ping``.
        """
        try:
            name = SETTING_OF[Channel(channel)]
        except ValueError:
            return Delivery(delivered=False, permanent=True, reason=f"there is no channel {channel}")
        variable = f"ZLH_NOTIFY__{name.upper()}"
        secret: SecretStr = getattr(self._settings, name)
        if not secret.get_secret_value():
            return Delivery(delivered=False, permanent=True, reason=f"{channel} has no webhook: set {variable} to <id>/<token>")
        match = _WEBHOOK.fullmatch(secret.get_secret_value())
        if match is None:
            return Delivery(delivered=False, permanent=True, reason=f"{variable} is not <id>/<token>: give the last two parts of the webhook's URL")
        users = tuple(user for user in self._settings.ping_users if _USER.fullmatch(user))[:MENTION_LIMIT] if ping else ()
        # Made directly: a look-up by schema would import every plugin of Apprise, a hundred and more.
        plugin = Webhook(
            self._http,
            self._settings.base_url.rstrip("/"),
            variable,
            users,
            self._settings.timeout_s,
            webhook_id=match[1],
            webhook_token=match[2],
        )
        try:
            # The transport's own time-out holds per read; this one ends an answer that trickles in for ever.
            async with asyncio.timeout(2 * self._settings.timeout_s):
                await asyncio.to_thread(plugin.send, compose(text, users, key))
        except TimeoutError:
            return Delivery(delivered=False, ambiguous=True, reason=f"no whole answer from Discord after {2 * self._settings.timeout_s:g} s")
        return plugin.delivery

    async def mail(self, severity: str, subject: str, text: str, *, key: str) -> Delivery | None:
        """Through the Apprise URL of ``ZLH_NOTIFY__MAIL_URL``; None where none is set or the severity goes by no mail."""
        url = self._settings.mail_url.get_secret_value()
        if not url or severity not in self._settings.mail_severities:
            return None
        sender = apprise.Apprise()
        if not sender.add(url):
            return Delivery(delivered=False, permanent=True, reason="ZLH_NOTIFY__MAIL_URL is no URL that Apprise understands")
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                sent = await asyncio.to_thread(sender.notify, body=f"{text}\n\n{key}", title=subject, body_format="text")
        except TimeoutError:
            return Delivery(delivered=False, ambiguous=True, reason=f"no answer from the mail server after {self._settings.timeout_s:g} s")
        return Delivery(delivered=bool(sent), reason="" if sent else "the mail server did not take the message: check ZLH_NOTIFY__MAIL_URL")


def compose(text: str, users: tuple[str, ...], key: str) -> str:
    """Mentions, text, footer with the key: at most 2,000 characters, the text cut where it is too long."""
    head = " ".join(f"<@{user}>" for user in users) + "\n" if users else ""
    foot = f"\n-# {_cut(key, 200)}"
    return f"{head}{_cut(text, LIMIT - _length(head) - _length(foot))}{foot}"


def _cut(text: str, limit: int) -> str:
    if _length(text) <= limit:
        return text
    return text.encode("utf-16-le")[: 2 * (limit - 1)].decode("utf-16-le", errors="ignore") + "…"


def _length(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _read(response: httpx.Response) -> bytes:
    """The body, as far as it can matter: what is longer is not Discord's."""
    body = bytearray()
    assert isinstance(response.stream, httpx.SyncByteStream)
    for chunk in response.stream:
        body += chunk
        if len(body) > MAX_ANSWER:
            break
    return bytes(body)


def _retry_after(response: httpx.Response) -> float | None:
    for value in (response.headers.get("Retry-After"), _field(response, "retry_after")):
        try:
            seconds = float(value)  # type: ignore[arg-type] # None and others are caught
        except (TypeError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _field(response: httpx.Response, name: str) -> object:
    try:
        body = response.json()
    except ValueError:
        return None
    return body.get(name) if isinstance(body, dict) else None
