"""The channels' port: what Discord and the mail server got stays in the world, whether their answer came back or not."""

from __future__ import annotations

from collections.abc import Callable

from flows.domain.ports import Delivery
from flows.errors import AmbiguousEffect, Busy, Unreachable
from flows.simulate.world import Post, World

LIMIT_S = 10.0
#: Severities that go by mail too: the default of ``notify.mail_severities``, with an address given.
MAILED = frozenset({"critical"})


class Notifier:
    def __init__(self, world: World) -> None:
        self.w = world

    async def send(self, channel: str, text: str, *, ping: bool, key: str) -> Delivery:
        def effect() -> None:
            self.w.posts.append(Post(self.w.loop.time(), channel, key, ping, text))
            self.w.effect("discord", "post", key, "", None)

        return await self._sent("discord", "post", key, effect)

    async def mail(self, severity: str, subject: str, text: str, *, key: str) -> Delivery | None:
        """None: this severity goes to no mailbox."""
        if severity not in MAILED:
            return None
        return await self._sent("mail", "mail", key, lambda: self.w.effect("mail", "mail", key, "", None))

    async def _sent(self, source: str, verb: str, key: str, effect: Callable[[], None]) -> Delivery:
        try:
            await self.w.wire.call(source, verb, key, effect, write=True, limit_s=LIMIT_S)
        except Busy:
            return Delivery(False, status=429, retry_after_s=5.0, reason="rate limited")
        except Unreachable as error:
            return Delivery(False, reason=str(error))
        except AmbiguousEffect as error:
            return Delivery(False, ambiguous=True, reason=str(error))
        return Delivery(True, status=204)
