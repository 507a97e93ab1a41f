"""The artifact catalog as the front door reads it: at most one question at a time, and not one per request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flows.domain.ports import Artifact, Catalog
from flows.errors import Unreachable

#: Seconds for which an answer is used again.
CACHE_S = 5.0


@dataclass(frozen=True, slots=True)
class Promoted:
    """What may be ordered. ``stale``: the artifact server does not answer, this is the last good copy."""

    artifacts: Sequence[Artifact]
    stale: bool

    def versions(self, kind: str, name: str) -> frozenset[str]:
        return frozenset(a.version for a in self.artifacts if a.kind == kind and a.name == name)

    def names(self, kind: str) -> frozenset[str]:
        return frozenset(a.name for a in self.artifacts if a.kind == kind)


class CatalogCache:
    """``clock`` is monotonic seconds."""

    def __init__(self, catalog: Catalog | None, ttl_s: float = CACHE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalog, self._ttl_s, self._clock = catalog, ttl_s, clock
        self._last: tuple[Promoted, float] | None = None
        self._one = asyncio.Lock()

    async def promoted(self) -> Promoted:
        """Raises Unreachable where there never was a copy."""
        if self._catalog is None:
            raise Unreachable("catalog", why="no artifact server is configured")
        async with self._one:
            if self._last is None or self._clock() >= self._last[1]:
                artifacts = await self._catalog.artifacts()
                self._last = Promoted([a for a in artifacts if a.state == "promoted"], self._catalog.stale), self._clock() + self._ttl_s
            return self._last[0]
