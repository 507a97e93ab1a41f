"""The proxy bridge's port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

from flows.domain.sources import ProxyView, Registration
from flows.errors import BadAnswer, Busy, Unreachable
from flows.simulate.loop import here
from flows.simulate.world import World

LIMIT_S = 5.0
#: Seconds that the bridge waits for our listener's list.
PULL_S = 3.0


class Proxy:
    """``server_of`` names the server that a registration belongs to; ``listing`` is what our control listener would answer the bridge."""

    def __init__(
        self, world: World, server_of: Callable[[str], str], listing: Callable[[], Awaitable[Mapping[str, tuple[Registration, int]]]]
    ) -> None:
        self.w, self._server_of, self._listing = world, server_of, listing

    async def view(self) -> ProxyView:
        def answer() -> ProxyView:
            if self.w.wire.trouble("proxy").partial:
                raise BadAnswer("proxy bridge: registrations", why="the list is missing or not complete")
            lying = self.w.wire.trouble("proxy").lying  # one that began a moment ago, say, and has not pulled its list yet
            return ProxyView({} if lying else dict(self.w.registrations), self.w.loop.time())

        try:
            return await self.w.wire.call("proxy", "view", "", answer, write=False, limit_s=LIMIT_S)
        except Unreachable:
            return await self.w.wire.call("proxy", "view", "", answer, write=False, limit_s=LIMIT_S)

    async def register(self, name: str, address: str, port: int, token: int) -> None:
        process, sent, entry = here(), self.w.loop.time(), Registration(name, address, port)

        def effect() -> None:
            self.w.register(name, entry, token, self._server_of(name), process, sent)

        await self.w.wire.call("proxy", "register", name, effect, write=True, limit_s=LIMIT_S)

    async def deregister(self, name: str, token: int) -> None:
        process, sent = here(), self.w.loop.time()

        def effect() -> None:
            self.w.deregister(name, token, self._server_of(name), process, sent)

        await self.w.wire.call("proxy", "deregister", name, effect, write=True, limit_s=LIMIT_S)

    async def rehydrate(self, leave: Collection[str] = ()) -> None:
        """The bridge asks our listener back. It keeps what it has where it gets no list."""
        process, sent = here(), self.w.loop.time()
        entries: dict[str, tuple[Registration, int]] = {}
        try:
            entries = dict(await self._listing())
        except Unreachable as error:
            raise Busy("proxy bridge: rehydrate", why="our listener gave it no complete list") from error

        def effect() -> None:
            self.w.rehydrate(entries, leave, process, sent)

        await self.w.wire.call("proxy", "rehydrate", "", effect, write=True, limit_s=LIMIT_S)
