"""A receiver of Discord webhooks with Discord's manners: ``POST /api/webhooks/{id}/{token}``.

204, or 200 with the message for ``?wait=true``; 400 code 50035 beyond 2,000 characters; 404 code 10015 for an unknown webhook;
per webhook ``requests`` posts in ``window_s`` seconds, then 429 with ``Retry-After`` and the ``X-RateLimit-*`` headers.
"""

from __future__ import annotations

import hmac
import itertools
import json
import math
import time
from collections import deque
from typing import Any

from aiohttp import web

from flows.lab.config import DiscordConfig, LabConfig, split_bind
from flows.lab.faults import Faults, middleware
from flows.lab.serving import Refused, Site, refusals, refuse
from flows.lab.world import World

#: Discord's limit of a message's content, characters.
CONTENT_LIMIT = 2000
#: Discord's limits of embeds in a message and of ids in allowed_mentions.
EMBED_LIMIT, MENTION_LIMIT = 10, 100
#: Messages kept per channel.
KEPT = 10_000
_PARSE = frozenset({"roles", "users", "everyone"})


async def start(config: LabConfig, world: World, faults: Faults) -> DiscordPart:
    part = DiscordPart(config.discord, faults)
    await part.site.open()
    return part


class DiscordPart:
    """``inspect()["channels"]`` lists per channel what arrived: content, allowed_mentions, time (Unix seconds)."""

    name = "discord"

    def __init__(self, config: DiscordConfig, faults: Faults) -> None:
        self._config, self._faults = config, faults
        self._channels: dict[str, tuple[str, str]] = {}  # webhook id → (token, channel)
        for channel, secret in config.webhooks.items():
            hook, _, token = secret.get_secret_value().partition("/")
            self._channels[hook] = (token, channel)
        self._messages: dict[str, deque[dict[str, Any]]] = {channel: deque(maxlen=KEPT) for channel in config.webhooks}
        self._hits: dict[str, deque[float]] = {}
        self._refused: dict[str, int] = {}
        self._ids = itertools.count(1_400_000_000_000_000_000)
        self.site = Site(split_bind(config.bind), self._build)

    @property
    def endpoints(self) -> dict[str, str]:
        return {"url": self.site.url, "webhooks": f"{self.site.url}/api/webhooks"}

    async def stop(self) -> None:
        await self.site.close()

    async def restart(self) -> None:
        """The listener goes and comes; messages stay, as Discord keeps them."""
        await self.site.close()
        await self.site.open()

    def inspect(self) -> dict[str, Any]:
        return {"channels": {channel: list(messages) for channel, messages in self._messages.items()}, "refused": dict(self._refused)}

    def _build(self) -> web.Application:
        app = web.Application(middlewares=[middleware(self._faults, "discord"), refusals], client_max_size=8 * 1_048_576)  # type: ignore[list-item] # aiohttp types middlewares loosely
        app.router.add_get("/api/webhooks/{id}/{token}", self._describe)
        app.router.add_post("/api/webhooks/{id}/{token}", self._receive)
        return app

    def _channel(self, request: web.Request) -> str:
        known = self._channels.get(request.match_info["id"])
        if known is None:
            raise self._refusal("unknown", 404, {"message": "Unknown Webhook", "code": 10015})
        if not hmac.compare_digest(known[0].encode(), request.match_info["token"].encode()):
            raise self._refusal(known[1], 401, {"message": "Invalid Webhook Token", "code": 50027})
        return known[1]

    async def _describe(self, request: web.Request) -> web.Response:
        channel = self._channel(request)
        return web.json_response({"type": 1, "id": request.match_info["id"], "name": channel, "channel_id": channel, "application_id": None})

    async def _receive(self, request: web.Request) -> web.Response:
        channel = self._channel(request)
        headers = self._admit(request.match_info["id"], channel)
        payload = await self._payload(request, channel)
        self._validate(payload, channel)
        message = {
            "id": str(next(self._ids)),
            "time": time.time(),
            "content": payload.get("content") or "",
            "embeds": payload.get("embeds") or [],
            "allowed_mentions": payload.get("allowed_mentions"),
            "username": payload.get("username"),
        }
        self._messages[channel].append(message)
        if request.query.get("wait", "").lower() not in ("true", "1"):
            return web.Response(status=204, headers=headers)
        return web.json_response({"type": 0, "channel_id": channel, "webhook_id": request.match_info["id"], **message}, headers=headers)

    def _admit(self, hook: str, channel: str) -> dict[str, str]:
        """Counts the post against its webhook's bucket, whether or not its content is then accepted; returns the rate-limit headers."""
        now, window, limit = time.monotonic(), self._config.window_s, self._config.requests
        hits = self._hits.setdefault(hook, deque())
        while hits and now - hits[0] >= window:
            hits.popleft()
        limited = len(hits) >= limit
        if not limited:
            hits.append(now)
        wait = max(0.001, hits[0] + window - now)
        headers = {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(limit - len(hits)),
            "X-RateLimit-Reset": f"{time.time() + wait:.3f}",
            "X-RateLimit-Reset-After": f"{wait:.3f}",
            "X-RateLimit-Bucket": f"lab-{hook}",
        }
        if limited:
            headers |= {"Retry-After": str(math.ceil(wait)), "X-RateLimit-Scope": "shared", "Via": "1.1 lab"}
            body = {"message": "You are being rate limited.", "retry_after": round(wait, 3), "global": False}
            raise self._refusal(channel, 429, body, headers)
        return headers

    async def _payload(self, request: web.Request, channel: str) -> dict[str, Any]:
        try:
            if request.content_type == "application/json":
                body = await request.json()
            elif request.content_type in ("multipart/form-data", "application/x-www-form-urlencoded"):
                form = await request.post()
                body = json.loads(str(form["payload_json"])) if "payload_json" in form else dict(form.items())
            else:
                raise self._refusal(channel, 400, {"message": "Cannot send an empty message", "code": 50006})
        except ValueError:
            raise self._refusal(channel, 400, {"message": "The request body contains invalid JSON.", "code": 50109}) from None
        if not isinstance(body, dict):
            raise self._invalid(channel, "_", "MODEL_TYPE_CONVERT", "Only dictionaries may be used in a ModelType")
        return body

    def _validate(self, payload: dict[str, Any], channel: str) -> None:
        content, embeds = payload.get("content"), payload.get("embeds")
        if content is not None and not isinstance(content, str):
            raise self._invalid(channel, "content", "STRING_TYPE_CONVERT", f'Could not interpret "{content}" as string.')
        if content is not None and len(content) > CONTENT_LIMIT:
            raise self._invalid(channel, "content", "BASE_TYPE_MAX_LENGTH", f"Must be {CONTENT_LIMIT} or fewer in length.")
        if isinstance(embeds, list) and len(embeds) > EMBED_LIMIT:
            raise self._invalid(channel, "embeds", "BASE_TYPE_MAX_LENGTH", f"Must be {EMBED_LIMIT} or fewer in length.")
        if not (content or "").strip() and not embeds:
            raise self._refusal(channel, 400, {"message": "Cannot send an empty message", "code": 50006})
        self._validate_mentions(payload.get("allowed_mentions"), channel)

    def _validate_mentions(self, mentions: Any, channel: str) -> None:
        if mentions is None:
            return
        if not isinstance(mentions, dict) or not isinstance(mentions.get("parse", []), list):
            raise self._invalid(channel, "allowed_mentions", "DICT_TYPE_CONVERT", "Only dictionaries may be used in a DictType")
        if set(mentions.get("parse", [])) - _PARSE:
            raise self._invalid(channel, "allowed_mentions", "BASE_TYPE_CHOICES", "Value must be one of ('users', 'roles', 'everyone').")
        for kind in ("users", "roles"):
            ids = mentions.get(kind) or []
            if kind in mentions.get("parse", []) and ids:
                raise self._invalid(
                    channel,
                    "allowed_mentions",
                    "MESSAGE_ALLOWED_MENTIONS_PARSE_EXCLUSIVE",
                    f'parse:["{kind}"] and {kind}: [ids...] are mutually exclusive.',
                )
            if len(ids) > MENTION_LIMIT:
                raise self._invalid(channel, "allowed_mentions", "BASE_TYPE_MAX_LENGTH", f"Must be {MENTION_LIMIT} or fewer in length.")

    def _invalid(self, channel: str, field: str, code: str, text: str) -> Refused:
        errors = {field: {"_errors": [{"code": code, "message": text}]}}
        return self._refusal(channel, 400, {"message": "Invalid Form Body", "code": 50035, "errors": errors})

    def _refusal(self, channel: str, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Refused:
        key = f"{channel}:{status}"
        self._refused[key] = self._refused.get(key, 0) + 1
        return refuse(web.json_response(body, status=status, headers=headers))
