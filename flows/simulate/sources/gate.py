"""The gate's port: a key in Redis with a time to live. Redis may be gone, and may forget everything."""

from __future__ import annotations

from flows.errors import Temporary
from flows.simulate.world import World

LIMIT_S = 2.0


class Redis:
    """What Redis holds: key → (holder, until)."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, float]] = {}

    def flush(self) -> None:
        self.keys.clear()


class Gate:
    def __init__(self, world: World, redis: Redis) -> None:
        self.w, self._redis = world, redis

    async def enter(self, holder: str, ttl_s: float) -> bool | None:
        def effect() -> bool:
            now = self.w.loop.time()
            held = self._redis.keys.get("gate")
            if held is not None and held[1] > now and held[0] != holder:
                return False
            self._redis.keys["gate"] = (holder, now + ttl_s)
            return True

        try:
            return await self.w.wire.call("redis", "set", "", effect, write=True, limit_s=LIMIT_S)
        except Temporary:
            return None

    async def renew(self, holder: str, ttl_s: float) -> bool | None:
        return await self.enter(holder, ttl_s)

    async def leave(self, holder: str) -> None:
        def effect() -> None:
            if self._redis.keys.get("gate", ("",))[0] == holder:
                del self._redis.keys["gate"]

        try:
            await self.w.wire.call("redis", "delete", "", effect, write=True, limit_s=LIMIT_S)
        except Temporary:
            return
