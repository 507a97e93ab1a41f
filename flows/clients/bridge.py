"""The proxy bridge's client: :class:`flows.domain.ports.ProxyWriter`. Built by ``bootstrap``; the sweep reads, steps and repairs write.

``PUT`` and ``DELETE`` are convergent and carry the server's lease token, which the bridge fences. Reads are tried twice, writes never again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import stamina

from flows.clients.http import decode_object, detail, fit, read_capped, require_literal_address
from flows.domain.sources import ProxyView, Registration
from flows.errors import (
    AmbiguousEffect,
    AutomationError,
    BadAnswer,
    BadInput,
    Busy,
    Conflict,
    Fenced,
    MisconfiguredSetting,
    RateLimited,
    Unauthorized,
    Unreachable,
)
from flows.settings import ProxySettings

LEASE_HEADER = "X-ZLH-Lease-Token"
#: Largest answer: ten thousand registrations need about 1 MB.
MAX_ANSWER_BYTES = 8 * 1024 * 1024
#: Anything that another hand may have registered, and that a path segment can carry: what is not ours is to be seen, and withdrawn.
_NAME = re.compile(r"(?!\.{1,2}$)[!-.0-~]{1,64}")
_LOOK = "check that the proxy runs and that ZLH_PROXY__URL names its bridge"


class BridgeClient:
    """Raises MisconfiguredSetting at once for a URL without a literal address."""

    def __init__(self, settings: ProxySettings, *, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._settings = settings
        self._url = require_literal_address("ZLH_PROXY__URL", settings.url)
        self._max = max_answer_bytes
        self._http: httpx.AsyncClient | None = None

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def view(self) -> ProxyView:
        """Raises Unreachable, Unauthorized, BadAnswer: a list that is not whole is no list."""
        listing, status = await asyncio.gather(self._get("registrations", "/servers"), self._get("its status", "/status"))
        return ProxyView(registrations=_registrations(listing), uptime_s=_uptime(status))

    async def register(self, name: str, address: str, port: int, token: int) -> None:
        what = f"proxy bridge: registration of {name}"
        await self._send(what, "PUT", f"/servers/{quote(name, safe='')}", {LEASE_HEADER: str(token)}, {"address": address, "port": port})

    async def deregister(self, name: str, token: int) -> None:
        await self._send(f"proxy bridge: deregistration of {name}", "DELETE", f"/servers/{quote(name, safe='')}", {LEASE_HEADER: str(token)})

    async def rehydrate(self, leave: Collection[str] = ()) -> None:
        """``leave`` names the registrations that stay as they are. Raises Busy where the bridge kept what it had because our listener gave it
        no complete list."""
        await self._send("proxy bridge: rehydrate", "POST", "/rehydrate", {}, {"leave": sorted(leave)} if leave else None)

    async def _get(self, what: str, path: str) -> Mapping[str, Any]:
        what = f"proxy bridge: {what}"
        async for attempt in stamina.retry_context(on=Unreachable, attempts=2, wait_initial=0.1, wait_max=0.5):
            with attempt:
                status, body = await self._exchange(what, "GET", path, {}, None, write=False)
                if status != 200:
                    raise self._refusal(what, status, body, write=False)
                return decode_object(what, body)
        raise AssertionError("stamina returns or raises")

    async def _send(self, what: str, method: str, path: str, headers: Mapping[str, str], body: Mapping[str, object] | None = None) -> None:
        status, answer = await self._exchange(what, method, path, headers, body, write=True)
        if not 200 <= status < 300:
            raise self._refusal(what, status, answer, write=True)

    async def _exchange(
        self, what: str, method: str, path: str, headers: Mapping[str, str], body: Mapping[str, object] | None, *, write: bool
    ) -> tuple[int, bytes]:
        client = self._client()
        try:
            async with (
                asyncio.timeout(self._settings.timeout_s),
                client.stream(method, path, headers=dict(headers), json=body) as response,
            ):
                return response.status_code, await read_capped(what, response, self._max)
        except httpx.ConnectError as error:
            raise self._unconnected(what, error) from error
        except httpx.ConnectTimeout as error:
            raise Unreachable(what, why="no connection in time", remedy=_LOOK) from error
        except (httpx.HTTPError, TimeoutError) as error:
            why = f"no answer ({type(error).__name__})"
            if write:
                raise AmbiguousEffect(what, why=why, remedy="look at the registrations before acting again") from error
            raise Unreachable(what, why=why, remedy=_LOOK) from error
        except BadAnswer as error:
            if write:
                raise AmbiguousEffect(what, why=error.why, remedy="look at the registrations before acting again") from error
            raise

    def _unconnected(self, what: str, error: httpx.ConnectError) -> AutomationError:
        text = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
            return MisconfiguredSetting(
                "ZLH_PROXY__CA_FILE", why=f"{what}: its certificate is not trusted", remedy="set it to the CA that signed the bridge's certificate"
            )
        return Unreachable(
            what, why="connection refused" if "refused" in text or "All connection attempts failed" in text else "no connection", remedy=_LOOK
        )

    def _refusal(self, what: str, status: int, body: bytes, *, write: bool) -> AutomationError:
        why = detail(body, self._settings.token.get_secret_value()) or f"status {status}"
        if status in (401, 403):
            return Unauthorized(what, why=f"it refuses our token ({status})", remedy="set ZLH_PROXY__TOKEN to the bridge's token")
        if status == 412:
            return Fenced(what, why=why, remedy="somebody newer owns this server: nothing to do")
        if status in (400, 422, 428):
            return BadInput("registration", what.removeprefix("proxy bridge: "), why=why)
        if status == 409:
            return Conflict(what, why=why)
        if status == 429:
            return RateLimited(what, why=why)
        if status in (502, 503):
            return Busy(what, why=why, remedy="check that the bridge reaches our control listener")
        if status >= 500:
            return AmbiguousEffect(what, why=why) if write else Unreachable(what, why=why, remedy=_LOOK)
        return MisconfiguredSetting("ZLH_PROXY__URL", why=f"{what}: status {status}: this is not the bridge", remedy=_LOOK)

    def _client(self) -> httpx.AsyncClient:
        if self._http is not None:
            return self._http
        settings = self._settings
        verify: ssl.SSLContext | bool = self._url.startswith("https:")
        if verify:
            try:
                verify = ssl.create_default_context(cafile=str(settings.ca_file) if settings.ca_file else None)
            except (OSError, ssl.SSLError) as error:
                raise MisconfiguredSetting(
                    "ZLH_PROXY__CA_FILE", why=f"{settings.ca_file}: {type(error).__name__}", remedy="name a readable PEM file with the CA"
                ) from error
        token = settings.token.get_secret_value()
        if not token:
            raise MisconfiguredSetting("ZLH_PROXY__TOKEN", why="is empty", remedy="set it to the bridge's token")
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            timeout=settings.timeout_s,
            verify=verify,
            trust_env=False,
            follow_redirects=False,
        )
        return self._http


def _registrations(listing: Mapping[str, Any]) -> dict[str, Registration]:
    """Raises BadAnswer where any entry is spoilt, or where the bridge says that the list is not whole."""
    what = "proxy bridge: registrations"
    rows = listing.get("servers")
    if not isinstance(rows, list) or listing.get("complete") is False:
        raise BadAnswer(what, why="the list is missing or not complete")
    found: dict[str, Registration] = {}
    for row in rows:
        name, address, port = (row.get("name"), row.get("address"), row.get("port")) if isinstance(row, dict) else (None, None, None)
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in found:
            raise BadAnswer(what, why=f"name {fit(name)[:70]!r} is not valid, or there twice")
        if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
            raise BadAnswer(what, why=f"{name}: port is not valid")
        try:
            found[name] = Registration(name, str(ipaddress.ip_address(address if isinstance(address, str) else "")), port)
        except ValueError as error:
            raise BadAnswer(what, why=f"{name}: address is not valid") from error
    return found


def _uptime(status: Mapping[str, Any]) -> float:
    value = status.get("uptime_s")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise BadAnswer("proxy bridge: its status", why="uptime_s is not valid")
    return float(value)
