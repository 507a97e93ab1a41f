"""The channels' port: what Discord got stays in the world, whether its answer came back or not."""

from __future__ import annotations

from flows.domain.ports import Delivery
from flows.errors import AmbiguousEffect, Busy, Unreachable
from flows.simulate.world import Post, World

LIMIT_S = 10.0


class Notifier:
    def __init__(self, world: World) -> None:
        self.w = world

    async def send(self, channel: str, text: str, *, ping: bool, key: str) -> Delivery:
        def effect() -> None:
            self.w.posts.append(Post(self.w.loop.time(), channel, key, ping, text))
            self.w.effect("discord", "post", key, "", None)

        try:
            await self.w.wire.call("discord", "post", key, effect, write=True, limit_s=LIMIT_S)
        except Busy:
            return Delivery(False, status=429, retry_after_s=5.0, reason="rate limited")
        except Unreachable as error:
            return Delivery(False, reason=str(error))
        except AmbiguousEffect as error:
            return Delivery(False, ambiguous=True, reason=str(error))
        return Delivery(True, status=204)

    async def mail(self, severity: str, subject: str, text: str, *, key: str) -> Delivery | None:
        return None
