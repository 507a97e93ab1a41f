"""The Redis server behind the gate, for ``zlh validate workers`` and ``zlh redis reset``. The sweep itself uses :mod:`flows.clients.gate`.

Redis is execution state: whatever lies there may be thrown away at any time. Only keys of our own prefix are ours, though.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

from flows.domain.topology import Peer
from flows.errors import BadInput, Forbidden, MisconfiguredSetting, Unauthorized, Unreachable
from flows.settings import RedisSettings

_T = TypeVar("_T")
#: Keys asked for, and removed, at once.
BATCH = 500


class RedisServer:
    """One instance per event loop; close it. Every call raises Unreachable, Unauthorized or Forbidden in words without the URL."""

    def __init__(self, settings: RedisSettings) -> None:
        self.prefix = settings.prefix
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

    async def close(self) -> None:
        await self._redis.aclose()

    async def clients(self) -> list[Peer]:
        """Everybody else who is connected."""

        async def ask() -> list[Peer]:
            async with self._redis.client() as own:  # one connection, so that it knows itself
                mine = str(await own.client_id())
                listed: list[dict[str, Any]] = await own.client_list()
            return [_peer(client) for client in listed if str(client.get("id")) != mine]

        return await self._asked("list clients", ask)

    async def keys(self) -> list[str]:
        """Every key of ours, sorted."""
        self._require_prefix()

        async def ask() -> list[str]:
            return sorted({str(key) async for key in self._redis.scan_iter(match=_literal(self.prefix) + "*", count=BATCH)})

        return await self._asked("list keys", ask)

    async def forget(self) -> int:
        """Removes every key of ours, and no other; returns how many there were."""
        found = await self.keys()

        async def remove() -> int:
            removed = 0
            for start in range(0, len(found), BATCH):
                removed += int(await self._redis.unlink(*found[start : start + BATCH]))
            return removed

        return await self._asked("remove keys", remove)

    async def flush(self) -> int:
        """Empties the whole server, every database of it; returns how many keys there were."""

        async def empty() -> int:
            info: dict[str, Any] = await self._redis.info("keyspace")
            await self._redis.flushall()
            return sum(int(database["keys"]) for database in info.values() if isinstance(database, dict))

        return await self._asked("empty the server", empty)

    def _require_prefix(self) -> None:
        if not self.prefix:
            raise BadInput("ZLH_REDIS__PREFIX", "", why="is empty: every key would count as ours", remedy="set it, or use --all")

    async def _asked(self, what: str, ask: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await ask()
        except (AuthenticationError, AuthorizationError) as error:
            raise Unauthorized(f"redis: {what}", why=type(error).__name__, remedy="check the password in ZLH_REDIS__URL") from error
        except NoPermissionError as error:
            raise Forbidden(f"redis: {what}", why="the user's ACL forbids it", remedy="grant it +client +scan +unlink +flushall +info") from error
        except (RedisError, OSError, TimeoutError) as error:
            raise Unreachable(f"redis: {what}", why=type(error).__name__, remedy="check ZLH_REDIS__URL and that the server runs") from error


def _peer(client: dict[str, Any]) -> Peer:
    address = str(client.get("addr", ""))
    host = address.rpartition(":")[0].strip("[]") if not address.startswith("/") else ""
    name = str(client.get("name") or client.get("user") or "client")
    return Peer("Redis client", f"{name}#{client.get('id')}", address=host)


def _literal(prefix: str) -> str:
    """As a pattern that matches itself alone."""
    return "".join(f"\\{c}" if c in "*?[]\\^-" else c for c in prefix)
