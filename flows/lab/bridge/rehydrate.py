"""Pulls the backends that the product wants served. Anything but a complete, newer answer means: keep what is there and retry."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

import aiohttp
from pydantic import SecretStr, ValidationError

from flows.errors import MisconfiguredSetting
from flows.lab.bridge.backends import Backends, Listing

PATH = "/internal/proxy/backends"
#: Largest listing that is read, bytes; seconds that a pull may take; longest pause, as a multiple of the first.
LISTING_LIMIT, PULL_S, PAUSE_GROWTH = 16 * 1_048_576, 5.0, 8


class Kept(Exception):
    """The listing was not usable; the text says why."""


class Source:
    """Where the listing comes from. Raises MisconfiguredSetting naming the variable where the URL is no literal address."""

    def __init__(self, url: str, token: SecretStr, retry_s: float) -> None:
        parts = urlsplit(url)
        try:
            ipaddress.ip_address(parts.hostname or "")
        except ValueError:
            raise MisconfiguredSetting(
                "bridge.backends_url",
                why=f"{parts.hostname or 'nothing'!r} is not an IP address",
                remedy="set it to http://<control address>:<port> of the product's control listener; names are not resolved here",
            ) from None
        if parts.scheme not in ("http", "https"):
            raise MisconfiguredSetting("bridge.backends_url", why=f"{parts.scheme!r} is neither http nor https", remedy="correct the URL")
        self.url = url if parts.path.rstrip("/").endswith(PATH) else url.rstrip("/") + PATH
        self._token, self.retry_s = token, retry_s
        self._one = asyncio.Lock()

    async def pull(self, backends: Backends, leave: Collection[str] = ()) -> None:
        """One try, which leaves the names in ``leave`` as they are. Raises Kept; either way the outcome is noted."""
        async with self._one:
            try:
                asked_at = backends.clock
                listing = await self._fetch()
                if not listing.complete:
                    raise Kept("incomplete: the listing says that it is not complete")
                if listing.epoch < backends.epoch:
                    raise Kept(f"older: epoch {listing.epoch} after {backends.epoch}")
                backends.replace(listing, asked_at, leave)
            except Kept as kept:
                backends.note(str(kept))
                raise
            backends.note("complete")

    async def until_complete(self, backends: Backends) -> None:
        """Tries until it worked, with growing pauses."""
        pause = self.retry_s
        while True:
            try:
                return await self.pull(backends)
            except Kept:
                await asyncio.sleep(pause)
                pause = min(pause * 2, self.retry_s * PAUSE_GROWTH)

    async def _fetch(self) -> Listing:
        timeout = aiohttp.ClientTimeout(total=PULL_S)
        headers = {"Authorization": f"Bearer {self._token.get_secret_value()}"}
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
                session.get(self.url, headers=headers, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    raise Kept(f"error: HTTP {answer.status}")
                body = bytearray()
                async for chunk in answer.content.iter_chunked(65_536):
                    body += chunk
                    if len(body) > LISTING_LIMIT:
                        raise Kept(f"malformed: more than {LISTING_LIMIT} bytes")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Kept(f"error: {type(error).__name__}") from error
        try:
            return Listing.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise Kept(f"malformed: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
