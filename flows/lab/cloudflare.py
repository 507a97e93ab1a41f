"""A double of Cloudflare's DNS API for one zone: ``/client/v4/zones/{id}/dns_records`` with its envelopes, error codes, pages, batches and limits.

Written after the published API and what its users report of its errors; bearer tokens only. It keeps the ways that a client must cope with:
texts come back as they were written (quoted or not), two records may differ in their TTL alone only by being the same (81058), an alias
excludes addresses (81053), a batch is whole or nothing, and too many calls are 429 with ``Retry-After``. Faults are those of target ``dns``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from flows.errors import BadInput
from flows.lab.config import CloudflareConfig, LabConfig, split_bind
from flows.lab.faults import Faults, Handler, Mode, middleware
from flows.lab.part import PartError
from flows.lab.serving import Site, bearer_is
from flows.lab.world import World

_PREFIX = "/client/v4"
_ADDRESSES = frozenset({"A", "AAAA"})
_KNOWN = frozenset({"A", "AAAA", "CNAME", "TXT", "SRV", "MX", "NS"})
Entry = dict[str, Any]


async def start(config: LabConfig, world: World, faults: Faults) -> CloudflarePart:
    """Raises BadInput where the configuration has no section for it."""
    if config.cloudflare is None:
        raise BadInput("cloudflare", None, why="the part needs its section")
    part = CloudflarePart(config.cloudflare, faults)
    await part.site.open()
    return part


class _Refusal(Exception):
    def __init__(self, status: int, code: int, message: str, *, chain: list[Entry] | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.error: Entry = {"code": code, "message": message, **({"error_chain": chain} if chain else {})}


class CloudflarePart:
    """``inspect()`` shows the records and every call that could change them, with its outcome."""

    name = "cloudflare"

    def __init__(self, config: CloudflareConfig, faults: Faults) -> None:
        self._config, self._faults = config, faults
        self._records: dict[str, Entry] = {}
        self._hits: deque[float] = deque()
        self.writes: list[dict[str, Any]] = []
        self.site = Site(split_bind(config.bind), self._build)

    @property
    def endpoints(self) -> dict[str, str]:
        return {"url": f"{self.site.url}{_PREFIX}", "zone_id": self._config.zone_id}

    async def stop(self) -> None:
        await self.site.close()

    async def restart(self) -> None:
        await self.site.close()
        await self.site.open()

    def inspect(self) -> dict[str, Any]:
        return {"zone": self._config.zone, "records": list(self._records.values()), "writes": list(self.writes)}

    async def manipulate(self, op: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``delete`` (``name``, ``rtype`` or all), ``replace`` and ``add`` (``name``, ``rtype``, ``value`` or a list, ``ttl``, ``proxied``);
        as by hand on the dashboard."""
        name, rtype = str(arguments.get("name") or "").lower(), str(arguments.get("rtype") or "")
        same = [key for key, entry in self._records.items() if entry["name"] == name and rtype in ("", entry["type"])]
        values = arguments.get("value", [])
        wanted = [str(value) for value in values] if isinstance(values, (list, tuple)) else [str(values)]
        if op == "delete" and not same:
            raise PartError(f"name: {name} has no such record")
        if op not in ("delete", "replace", "add") or (op != "delete" and not rtype):
            raise PartError(f"op: {op!r} is none of delete, replace, add, or lacks its rtype")
        draft = dict(self._records)
        for key in same if op != "add" else ():
            del draft[key]
        try:
            for value in wanted if op != "delete" else ():
                content = {"name": name, "type": rtype, "content": value, "ttl": arguments.get("ttl", 60), "proxied": arguments.get("proxied", False)}
                self._create(draft, content)
        except _Refusal as refusal:
            raise PartError(str(refusal)) from refusal
        self._records = draft
        return {"name": name}

    # ── HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _build(self) -> web.Application:
        app = web.Application(middlewares=[middleware(self._faults, "dns"), self._envelope], client_max_size=4_194_304)  # type: ignore[list-item] # aiohttp types middlewares loosely
        records = f"{_PREFIX}/zones/{{zone}}/dns_records"
        app.add_routes(
            [
                web.get(f"{_PREFIX}/user/tokens/verify", self._verify),
                web.get(f"{_PREFIX}/zones/{{zone}}", self._zone),
                web.get(records, self._list),
                web.post(records, self._post),
                web.post(f"{records}/batch", self._batch),
                web.get(f"{records}/{{record}}", self._get),
                web.put(f"{records}/{{record}}", self._put),
                web.patch(f"{records}/{{record}}", self._patch),
                web.delete(f"{records}/{{record}}", self._delete),
            ]
        )
        return app

    @web.middleware
    async def _envelope(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors in Cloudflare's form, and who may call at all."""
        before = dict(self._records)
        try:
            self._admit(request)
            answer = await handler(request)
            self._wrote(request, before, answer.status, None)
            return answer
        except _Refusal as refusal:
            self._wrote(request, before, refusal.status, refusal.error["code"])
            body = {"success": False, "errors": [refusal.error], "messages": [], "result": None}
            return web.json_response(body, status=refusal.status, headers=refusal.headers)
        except web.HTTPNotFound:
            body = {"success": False, "errors": [{"code": 7000, "message": "No route for that URI"}], "messages": [], "result": None}
            return web.json_response(body, status=404)

    def _wrote(self, request: web.Request, before: Mapping[str, Entry], status: int, code: int | None) -> None:
        """``names``: of the records that it made, changed or removed."""
        if request.method != "GET":
            now = self._records
            names = {entry["name"] for key, entry in {**before, **now}.items() if before.get(key) is not now.get(key)}
            self.writes.append({"call": f"{request.method} {request.path}", "status": status, "code": code, "names": sorted(names)})

    def _admit(self, request: web.Request) -> None:
        header = request.headers.get("Authorization", "")
        if not header:
            raise _Refusal(400, 9106, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")
        if not header.startswith("Bearer ") or len(header) > 512:
            chain = [{"code": 6111, "message": "Invalid format for Authorization header"}]
            raise _Refusal(400, 6003, "Invalid request headers", chain=chain)
        now, window = time.monotonic(), self._config.window_s
        while self._hits and now - self._hits[0] >= window:
            self._hits.popleft()
        if len(self._hits) >= self._config.requests:
            wait = max(1, round(self._hits[0] + window - now + 0.5))
            message = "Please wait and consider throttling your request speed"
            raise _Refusal(429, 971, message, headers={"Retry-After": str(wait)})
        self._hits.append(now)
        reader = self._config.reader_token.get_secret_value() if self._config.reader_token else None
        if reader and bearer_is(request, reader):
            if request.method != "GET":
                raise _Refusal(403, 10000, "Authentication error")
        elif not bearer_is(request, self._config.token.get_secret_value()):
            raise _Refusal(403, 9109, "Invalid access token")
        zone = request.match_info.get("zone")
        if zone is not None and len(zone) != 32:
            chain = [{"code": 7003, "message": f"Could not route to /zones/{zone}, perhaps your object identifier is invalid?"}]
            raise _Refusal(400, 7003, f"Could not route to /zones/{zone}, perhaps your object identifier is invalid?", chain=chain)
        if zone is not None and zone != self._config.zone_id:
            raise _Refusal(403, 9109, "Unauthorized to access requested resource")

    async def _verify(self, request: web.Request) -> web.Response:
        return _fine({"id": "0" * 32, "status": "active"})

    async def _zone(self, request: web.Request) -> web.Response:
        return _fine({"id": self._config.zone_id, "name": self._config.zone, "status": "active", "paused": False, "type": "full"})

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query
        try:
            page, per_page = int(query.get("page", "1")), int(query.get("per_page", "100"))
        except ValueError:
            page = per_page = 0
        if page < 1 or not 1 <= per_page <= 5_000_000:
            raise _Refusal(400, 1004, "DNS Validation Error", chain=[{"code": 9003, "message": "Invalid page or per_page"}])
        per_page = min(per_page, self._config.most_per_page)
        found = [entry for entry in self._records.values() if _matches(entry, query)]
        found.sort(key=lambda entry: (entry["name"], entry["type"], entry["id"]))
        part = found[(page - 1) * per_page : page * per_page]
        if self._faults.hit("dns", f"{request.method} {request.path}", Mode.PARTIAL) is not None:
            part = part[: len(part) // 2]
        info = {
            "page": page,
            "per_page": per_page,
            "count": len(part),
            "total_count": len(found),
            "total_pages": -(-len(found) // per_page) or 1,
        }
        return _fine(part, result_info=info)

    async def _get(self, request: web.Request) -> web.Response:
        return _fine(self._existing(self._records, request.match_info["record"], 404))

    async def _post(self, request: web.Request) -> web.Response:
        draft = dict(self._records)
        made = self._create(draft, await _body(request))
        self._records = draft
        return _fine(made)

    async def _put(self, request: web.Request) -> web.Response:
        return _fine(self._change(request.match_info["record"], await _body(request), whole=True))

    async def _patch(self, request: web.Request) -> web.Response:
        return _fine(self._change(request.match_info["record"], await _body(request), whole=False))

    async def _delete(self, request: web.Request) -> web.Response:
        entry = self._existing(self._records, request.match_info["record"], 404)
        del self._records[entry["id"]]
        return _fine({"id": entry["id"]})

    async def _batch(self, request: web.Request) -> web.Response:
        """Deletes, patches, puts, posts, in this order, all or none."""
        order, draft = await _body(request), dict(self._records)
        before, done = self._records, {}
        done["deletes"] = [draft.pop(self._existing(draft, str(_entry(entry).get("id")), 400)["id"]) for entry in order.get("deletes") or ()]
        self._records = draft
        try:
            for kind, whole in (("patches", False), ("puts", True)):
                done[kind] = [self._change(str(_entry(entry).get("id")), entry, whole=whole, status=400) for entry in order.get(kind) or ()]
            draft = dict(self._records)
            done["posts"] = [self._create(draft, _entry(entry)) for entry in order.get("posts") or ()]
        except _Refusal:
            self._records = before
            raise
        self._records = draft
        return _fine({kind: done[kind] or None for kind in ("deletes", "patches", "puts", "posts")})

    # ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _existing(self, draft: Mapping[str, Entry], key: str, status: int) -> Entry:
        if key not in draft:
            raise _Refusal(status, 81044, "Record does not exist.")
        return draft[key]

    def _change(self, key: str, fields: Entry, *, whole: bool, status: int = 404) -> Entry:
        old, draft = self._existing(self._records, key, status), dict(self._records)
        del draft[key]
        made = self._create(draft, fields if whole else {**old, **fields}, key=key)
        self._records = draft
        return made

    def _create(self, draft: dict[str, Entry], fields: Entry, *, key: str | None = None) -> Entry:
        """Adds to ``draft``. Raises _Refusal with the code of what is wrong."""
        kind, ttl = str(fields.get("type", "")).upper(), fields.get("ttl", 1)
        name = str(fields.get("name", "")).rstrip(".").lower()
        zone = self._config.zone
        name = zone if name == "@" else name if name == zone or name.endswith(f".{zone}") else f"{name}.{zone}"
        if kind not in _KNOWN:
            raise _invalid(9004, f"DNS record type {kind!r} is invalid.")
        if not isinstance(ttl, int) or not (ttl == 1 or 60 <= ttl <= 86_400):
            raise _invalid(9021, "Invalid TTL. Must be between 60 and 86400 seconds, or 1 for Automatic.")
        content, data = _content(kind, fields)
        proxied = bool(fields.get("proxied", False))
        for other in draft.values():
            if other["name"] != name:
                continue
            if (other["type"], other["content"]) == (kind, content):
                raise _Refusal(400, 81058, "An identical record already exists.")
            if kind == "CNAME" and (other["type"] in _ADDRESSES or other["type"] == "CNAME"):
                raise _Refusal(400, 81053, "An A, AAAA, or CNAME record with that host already exists.")
            if kind in _ADDRESSES and other["type"] == "CNAME":
                raise _Refusal(400, 81053, "An A, AAAA, or CNAME record with that host already exists.")
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        entry: Entry = {
            "id": key or secrets.token_hex(16),
            "name": name,
            "type": kind,
            "content": content,
            "proxiable": kind in _ADDRESSES or kind == "CNAME",
            "proxied": proxied,
            "ttl": 1 if proxied else ttl,
            "settings": {},
            "meta": {},
            "comment": fields.get("comment"),
            "tags": [],
            "created_on": now,
            "modified_on": now,
        }
        if data is not None:
            entry |= {"data": data, "priority": data["priority"]}
        draft[entry["id"]] = entry
        return entry


def _fine(result: Any, **more: Any) -> web.Response:
    return web.json_response({"result": result, "success": True, "errors": [], "messages": [], **more})


def _invalid(code: int, message: str) -> _Refusal:
    return _Refusal(400, 1004, "DNS Validation Error", chain=[{"code": code, "message": message}])


def _entry(value: object) -> Entry:
    if not isinstance(value, dict):
        raise _Refusal(400, 9207, "Request body is invalid.")
    return value


async def _body(request: web.Request) -> Entry:
    try:
        return _entry(json.loads(await request.read()))
    except ValueError as error:
        raise _Refusal(400, 9207, "Request body is invalid.") from error


def _matches(entry: Entry, query: Mapping[str, str]) -> bool:
    name = entry["name"]
    exact = query.get("name.exact", query.get("name"))
    return bool(
        (exact is None or name == exact.lower())
        and name.endswith(query.get("name.endswith", "").lower())
        and name.startswith(query.get("name.startswith", "").lower())
        and query.get("type", entry["type"]) == entry["type"]
        and query.get("content.exact", query.get("content", entry["content"])) == entry["content"]
    )


def _content(kind: str, fields: Entry) -> tuple[str, Entry | None]:
    """The value as it is kept, and an SRV's parts. Raises _Refusal."""
    content = str(fields.get("content", "")).strip()
    if kind == "SRV":
        data: dict[str, Any] = dict(fields["data"]) if isinstance(fields.get("data"), dict) else {}
        if not data and content:
            with contextlib.suppress(ValueError):
                priority, weight, port, target = content.split()
                data = {"priority": int(priority), "weight": int(weight), "port": int(port), "target": target}
        if not all(isinstance(data.get(key), int) and 0 <= data[key] <= 65_535 for key in ("priority", "weight", "port")) or not data.get("target"):
            raise _invalid(9101, "SRV data is not valid.")
        data = {**{key: data[key] for key in ("priority", "weight", "port")}, "target": str(data["target"]).rstrip(".").lower()}
        return f"{data['weight']} {data['port']} {data['target']}", data
    if not content:
        raise _invalid(9000, "DNS record content is required.")
    if kind in _ADDRESSES:
        try:
            address = ipaddress.ip_address(content)
        except ValueError:
            address = None
        if address is None or address.version != (4 if kind == "A" else 6):
            raise _invalid(9005, f"Content for {kind} record must be a valid IPv{4 if kind == 'A' else 6} address.")
        return str(address), None
    if kind in ("CNAME", "NS"):
        return content.rstrip(".").lower(), None
    return content, None
