"""The optional lock in front of the epoch row: keeps a second sweep from starting work that the row would refuse anyway.

Called by the sweep. It is never more than a hint: Redis may lose it, so that the row alone decides, and None (unreachable, refused, held by
what is no sweep, not configured) means *go on by the row*.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from flows.errors import MisconfiguredSetting
from flows.settings import RedisSettings

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Only the holder's own lock is touched: after an expiry it may be somebody else's.
_RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end"
_LEAVE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"
#: Milliseconds that are left of whoever is in: -1 without end, -2 nobody is (any more).
_LEFT = "return redis.call('pttl', KEYS[1])"
#: A key with more left than so many times our own expiry is none of a sweep's, and would keep all of them out.
_FOREIGN = 10


class NoGate:
    """None is configured."""

    async def enter(self, holder: str, ttl_s: float) -> bool | None:
        return None

    async def renew(self, holder: str, ttl_s: float) -> bool | None:
        return None

    async def leave(self, holder: str) -> None: ...

    async def close(self) -> None: ...


class RedisGate:
    """Implements :class:`flows.domain.ports.Gate` by one key with an expiry. One instance per process and event loop; close it."""

    def __init__(self, settings: RedisSettings, *, name: str = "sweep") -> None:
        self._key = f"{settings.prefix}gate:{name}"
        self._timeout_s = settings.timeout_s
        self._warned = False
        try:
            self._redis: Redis = Redis.from_url(
                settings.url.get_secret_value(),
                decode_responses=True,
                socket_timeout=settings.timeout_s,
                socket_connect_timeout=settings.timeout_s,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise MisconfiguredSetting("ZLH_REDIS__URL", why="is no redis:// URL", remedy="set redis://[:password@]host:port/db") from error

    async def enter(self, holder: str, ttl_s: float) -> bool | None:
        """True also where this holder is in already: an answer may have been lost."""

        async def attempt() -> bool:
            if await self._redis.set(self._key, holder, nx=True, px=_ms(ttl_s)):
                return True
            if await self._renew(holder, ttl_s):
                return True
            left = int(str(await self._script(_LEFT)))
            if left == -1 or left > _FOREIGN * _ms(ttl_s):
                raise RedisError(f"{self._key} is held by something that is no sweep: delete it")
            return False

        return await self._asked(attempt)

    async def renew(self, holder: str, ttl_s: float) -> bool | None:
        """False: the lock expired, or is somebody else's."""
        return await self._asked(lambda: self._renew(holder, ttl_s))

    async def leave(self, holder: str) -> None:
        """Frees the holder's own lock; nothing to do where it is gone."""

        async def attempt() -> bool:
            return await self._script(_LEAVE, holder) == 1

        await self._asked(attempt)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _renew(self, holder: str, ttl_s: float) -> bool:
        return await self._script(_RENEW, holder, str(_ms(ttl_s))) == 1

    async def _script(self, script: str, *arguments: str) -> object:
        return await cast("Awaitable[object]", self._redis.eval(script, 1, self._key, *arguments))

    async def _asked(self, ask: Callable[[], Awaitable[_T]]) -> _T | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await ask()
        except (RedisError, OSError, TimeoutError) as error:
            if not self._warned:  # once per process: a sweep asks every few seconds
                self._warned = True
                why = str(error) if type(error) is RedisError else type(error).__name__  # others' words may quote the URL
                _LOG.warning("the gate is not used: redis: %s; check ZLH_REDIS__URL", why)
            return None
        self._warned = False
        return answer


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
