"""The DNS client for a zone at Cloudflare: :class:`flows.domain.ports.DnsWriter` over its API, by its own library.

Names, owner records and meaning are those of :mod:`flows.clients.dns`. What RFC 2136 does by prerequisites is done here by three things:

* what stands there is listed and compared with what the caller saw: another value is Conflict;
* deletions (by record id) and creations go in one batch, which Cloudflare carries out whole or not at all;
* what stands there afterwards is listed again: where somebody else wrote at the same moment, our records are taken back, and it is Conflict.

Between listing and batch a record that is *changed* (not replaced) by somebody else keeps its id and is replaced unseen; nothing in the API can
prevent that. A batch is sent once. Only the zone's own id, name and records are asked for, so a token with DNS Edit for one zone is enough.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dns.exception
import dns.name
import httpx
from cloudflare import APIConnectionError, APIStatusError, AsyncCloudflare, CloudflareError

from flows.clients.cloudflare_errors import lost, refusal
from flows.clients.dns_names import OWNER_LABEL, SRV_LABEL, TARGETS, by_set, inside, owned, owner_of, owner_text, rdata
from flows.clients.http import fit, is_loopback
from flows.domain.sources import Record, ZoneView
from flows.errors import AmbiguousEffect, BadInput, Conflict, MisconfiguredSetting, Temporary, Unproven, Unreachable
from flows.settings import DnsSettings

if TYPE_CHECKING:
    from cloudflare.types.dns import RecordResponse

#: Records per page, and pages at most; largest answer that is read, bytes.
PER_PAGE, MAX_PAGES, MAX_BYTES = 500, 400, 8_388_608
RETRY_S = 0.2
#: What Cloudflare takes for "automatic"; else the least that every plan may set.
AUTO_TTL, LEAST_TTL = 1, 60
#: What the library raises where an answer has another shape than it expects.
_NONSENSE = (ValueError, TypeError, AttributeError, KeyError)
_LOOK = "check Cloudflare's status and ZLH_DNS__CLOUDFLARE_URL"
_REREAD = "read the zone before acting again"


class CloudflareDns:
    """Raises MisconfiguredSetting at once for a missing token, an id that is none, or a URL over which the token would travel in clear."""

    def __init__(self, settings: DnsSettings) -> None:
        token = settings.cloudflare_token.get_secret_value()
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise MisconfiguredSetting("ZLH_DNS__CLOUDFLARE_TOKEN", why="is empty or no token", remedy="make an API token with Zone.DNS Edit")
        if not re.fullmatch(r"[0-9a-f]{32}", settings.cloudflare_zone_id):
            raise MisconfiguredSetting(
                "ZLH_DNS__CLOUDFLARE_ZONE_ID", why=f"{settings.cloudflare_zone_id!r} is no zone id", remedy="copy it from the zone's overview page"
            )
        url = httpx.URL(settings.cloudflare_url)
        if url.scheme != "https" and not (url.scheme == "http" and is_loopback(settings.cloudflare_url)):
            raise MisconfiguredSetting("ZLH_DNS__CLOUDFLARE_URL", why="is not https", remedy="only a lab on loopback may do without")
        if settings.ttl_s < LEAST_TTL and settings.ttl_s != AUTO_TTL:
            raise MisconfiguredSetting(
                "ZLH_DNS__TTL_S", why=f"Cloudflare takes no TTL below {LEAST_TTL} s", remedy=f"set {LEAST_TTL}, or 1: automatic"
            )
        try:
            self._origin = dns.name.from_text(settings.zone.lower())
        except (dns.exception.DNSException, ValueError) as error:
            raise MisconfiguredSetting(
                "ZLH_DNS__ZONE", why=f"{settings.zone!r} is no name: {fit(error)}", remedy="set it like play.example"
            ) from error
        self._settings = settings
        self._zone_id = settings.cloudflare_zone_id
        self._http = httpx.AsyncClient(timeout=settings.timeout_s, trust_env=False, transport=_Capped())
        self._api = AsyncCloudflare(
            api_token=token, base_url=settings.cloudflare_url, max_retries=0, timeout=settings.timeout_s, http_client=self._http
        )
        # The library also takes credentials from its own environment variables, and prefers some of them.
        self._api.api_key = self._api.api_email = self._api.user_service_key = None
        # The library imports its parts when they are first asked for, which takes a second of the processor: not while a lease must be renewed.
        self._records = self._api.dns.records

    async def close(self) -> None:
        await self._http.aclose()

    # Reading

    async def zone(self) -> ZoneView:
        """Every record below ``settings.zone``. Raises Unproven where a page is missing: half a zone proves nothing."""
        records: dict[str, list[Record]] = {}
        for entry in await self._list(self._settings.zone.lower()):
            record = _record(entry)
            records.setdefault(record.name, []).append(record)
        owners = {}
        for label, here in records.items():
            owner = owner_of(here) if label.startswith(OWNER_LABEL) else None
            if owner is not None:
                owners[label.removeprefix(OWNER_LABEL)] = owner
        return ZoneView(records={label: tuple(here) for label, here in records.items()}, owners=owners)

    async def records(self, name: str) -> tuple[Record, ...]:
        return tuple(_record(entry) for entry in await self._of(name))

    async def _of(self, name: str) -> list[RecordResponse]:
        """What the name's three labels hold."""
        labels = (name.lower(), SRV_LABEL + name.lower(), OWNER_LABEL + name.lower())
        return [entry for entry in await self._list(name.lower()) if _plain(entry.name) in labels]

    async def _list(self, suffix: str) -> list[RecordResponse]:
        """Tried again once where it failed soon: a zone that changes while it is read shows in its counts."""
        began = time.monotonic()
        try:
            return await self._list_once(suffix)
        except (Unreachable, Unproven):
            if time.monotonic() - began > self._settings.timeout_s:
                raise
        await asyncio.sleep(RETRY_S)
        return await self._list_once(suffix)

    async def _list_once(self, suffix: str) -> list[RecordResponse]:
        what = f"Cloudflare: listing of {suffix}"
        found: dict[str, RecordResponse] = {}
        try:
            async with asyncio.timeout(self._settings.timeout_s * 3):
                async for page in self._pages(what, suffix):
                    for entry in page:
                        if entry.id in found:
                            raise Unproven(what, why="the zone changed while it was read", remedy="it is tried again")
                        found[entry.id] = entry
        except APIStatusError as error:
            raise refusal(what, error, self._settings) from error
        except APIConnectionError as error:
            raise lost(what, error, sent=False) from error
        except TimeoutError as error:
            raise Unreachable(what, why="no whole listing in time", remedy=_LOOK) from error
        except (CloudflareError, httpx.HTTPError, *_NONSENSE) as error:
            raise Unproven(what, why=f"the answer is not valid ({type(error).__name__})", remedy=_LOOK) from error
        return [entry for entry in found.values() if _plain(entry.name) == suffix or _plain(entry.name).endswith(f".{suffix}")]

    async def _pages(self, what: str, suffix: str) -> AsyncIterator[Sequence[RecordResponse]]:
        """Until as many came as the API says there are. Raises Unproven where that never is so."""
        seen = 0
        for number in range(1, MAX_PAGES + 1):
            answer = await self._records.list(zone_id=self._zone_id, name={"endswith": suffix}, page=number, per_page=PER_PAGE, order="name")
            total = getattr(answer.result_info, "total_count", None)
            if getattr(answer, "success", None) is not True or not isinstance(answer.result, list) or not isinstance(total, int):
                raise Unproven(what, why="a page does not say that it succeeded, or how many records there are", remedy=_LOOK)
            if not all(isinstance(getattr(entry, "id", None), str) and isinstance(getattr(entry, "name", None), str) for entry in answer.result):
                raise Unproven(what, why="a record has no id or name", remedy=_LOOK)
            seen += len(answer.result)
            yield answer.result
            if seen == total:
                return
            if seen > total or not answer.result:
                break
        raise Unproven(what, why=f"{seen} records came, which is not what the zone has", remedy="it is tried again")

    # Writing

    async def publish(self, name: str, wanted: Sequence[Record], owner: str, seen: Sequence[Record]) -> None:
        """See the protocol. ``seen`` is what :meth:`records` gave; a set of records that it does not mention must not be there."""
        what = f"Cloudflare: publication of {name}"
        inside(name, self._origin, self._settings.zone)
        posts = [self._post(OWNER_LABEL + name.lower(), "TXT", owner_text(owner), self._settings.ttl_s)]
        for (label, rtype), records in by_set(wanted).items():
            if (label, rtype) not in owned(name) or rtype == "TXT":
                raise BadInput("wanted", f"{label} {rtype}", why=f"is no record that {name} may have")
            posts += [self._post(label, rtype, record.value, record.ttl) for record in records]
        before = await self._of(name)
        self._require(what, name, before, by_set(seen), {label for label, _ in owned(name)})
        made = await self._batch(what, _owned(name, before), posts)
        await self._alone(what, name, made)

    async def withdraw(self, name: str, owner: str, seen: Sequence[Record]) -> None:
        """Only while the name is ``owner``'s, and the labels that ``seen`` mentions are as seen."""
        what = f"Cloudflare: withdrawal of {name}"
        inside(name, self._origin, self._settings.zone)
        before, label = await self._of(name), OWNER_LABEL + name.lower()
        expected = {**by_set(seen), (label, "TXT"): [Record(label, "TXT", owner_text(owner))]}
        self._require(what, name, before, expected, {label for label, _ in expected} | {name.lower()})
        await self._batch(what, _owned(name, before), [])

    def _require(
        self, what: str, name: str, now: Iterable[RecordResponse], seen: Mapping[tuple[str, str], Sequence[Record]], labels: set[str]
    ) -> None:
        found = by_set([_record(entry) for entry in now])
        for key in owned(name):
            if key[0] in labels and {r.value for r in found.get(key, ())} != {r.value for r in seen.get(key, ())}:
                raise Conflict(what, why=f"the records changed since they were read ({' '.join(key)})", remedy="read them again")

    def _post(self, label: str, rtype: str, value: str, ttl: int) -> dict[str, Any]:
        """A record as the API wants it. Raises BadInput. Never proxied: players speak no HTTP."""
        parsed = rdata(rtype, value)
        post: dict[str, Any] = {"name": label, "type": rtype, "ttl": ttl if ttl == AUTO_TTL else max(ttl, LEAST_TTL)}
        if rtype == "SRV":
            priority, weight, port, target = parsed.to_text().split()
            post["data"] = {"priority": int(priority), "weight": int(weight), "port": int(port), "target": target.rstrip(".").lower()}
            return post
        post["content"] = parsed.to_text() if rtype == "TXT" else value.rstrip(".").lower() if rtype in TARGETS else parsed.to_text()
        if rtype != "TXT":
            post["proxied"] = False
        return post

    async def _batch(self, what: str, gone: Sequence[RecordResponse], posts: Sequence[dict[str, Any]]) -> list[str]:
        """Sent once; the ids of what it made. Raises Conflict, AmbiguousEffect (no answer that can be trusted) or what refused it."""
        deletes = [{"id": entry.id} for entry in gone]
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                answer = await self._records.batch(zone_id=self._zone_id, deletes=deletes, posts=posts)  # type: ignore[arg-type] # its typed dicts name each record type
        except APIStatusError as error:
            raise refusal(what, error, self._settings, sent=True) from error
        except APIConnectionError as error:
            raise lost(what, error, sent=True) from error
        except (TimeoutError, CloudflareError, httpx.HTTPError, *_NONSENSE) as error:
            raise AmbiguousEffect(what, why=f"no valid answer ({type(error).__name__})", remedy=_REREAD) from error
        entries = getattr(answer, "posts", None)  # the library checks no types: the answer may be anything
        made = [entry.id for entry in entries if isinstance(getattr(entry, "id", None), str)] if isinstance(entries, list) else []
        if len(made) != len(posts):
            raise AmbiguousEffect(what, why="the answer does not list what was made", remedy=_REREAD)
        return made

    async def _alone(self, what: str, name: str, made: Sequence[str]) -> None:
        """Raises Conflict, with our records taken back, where others stand beside ours."""
        try:
            after = _owned(name, await self._of(name))
        except Temporary as error:
            raise AmbiguousEffect(what, why="published, but whether somebody else did so too is not known", remedy=_REREAD) from error
        if {entry.id for entry in after} == set(made):
            return
        ours = [entry for entry in after if entry.id in made]
        if ours:
            await self._batch(f"{what} (taken back)", ours, [])
        raise Conflict(what, why="somebody else wrote at the same moment", remedy="read them again")


def _owned(name: str, entries: Iterable[RecordResponse]) -> list[RecordResponse]:
    keys = owned(name)
    return [entry for entry in entries if (_plain(entry.name), str(entry.type)) in keys]


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def _record(entry: RecordResponse) -> Record:
    """A proxied record is answered with Cloudflare's own addresses, whatever it holds: its value says so, and is no address."""
    rtype = str(entry.type)
    return Record(_plain(entry.name), rtype, _value(rtype, entry), int(entry.ttl or 0))


def _value(rtype: str, entry: Any) -> str:
    content = str(entry.content or "")
    if rtype == "TXT":
        return _text(content)
    if rtype == "SRV":
        data = entry.data
        fields = [getattr(data, field, None) for field in ("priority", "weight", "port", "target")]
        return " ".join(_plain(str(int(f)) if isinstance(f, float | int) else str(f)) for f in fields) if None not in fields else _plain(content)
    value = _plain(content) if rtype in TARGETS else content
    return f"{value} (proxied)" if getattr(entry, "proxied", False) else value


def _text(content: str) -> str:
    """Quoted strings joined, as DNS means them; Cloudflare keeps the form in which a text was written."""
    if not content.startswith('"'):
        return content
    try:
        strings: Sequence[bytes] = getattr(dns.rdata.from_text("IN", "TXT", content), "strings", ())
    except (dns.exception.DNSException, ValueError):
        return content
    return b"".join(strings).decode(errors="replace")


class _Capped(httpx.AsyncBaseTransport):
    """The library reads whole answers: one of more than ``MAX_BYTES`` is cut off."""

    def __init__(self) -> None:
        self._wrapped = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._wrapped.handle_async_request(request)
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=_Stream(answer.stream), extensions=answer.extensions)

    async def aclose(self) -> None:
        await self._wrapped.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, wrapped: httpx.AsyncByteStream) -> None:
        self._wrapped = wrapped

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._wrapped:
            size += len(part)
            if size > MAX_BYTES:
                raise httpx.ReadError(f"an answer of more than {MAX_BYTES} bytes")
            yield part

    async def aclose(self) -> None:
        await self._wrapped.aclose()
