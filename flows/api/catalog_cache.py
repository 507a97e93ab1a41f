"""The artifact catalog as the front door reads it: at most one question at a time, not one per request, and never a long wait
for an artifact server that hangs as long as there is an earlier answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flows.domain.ports import Artifact, Catalog
from flows.errors import AutomationError, Unreachable

#: Seconds for which an answer, or the lack of one, is used again.
CACHE_S = 5.0
#: Seconds that a request waits for a newer answer before it takes the earlier one.
PATIENCE_S = 0.5


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

    def __init__(
        self, catalog: Catalog | None, ttl_s: float = CACHE_S, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalog, self._ttl_s, self._patience_s, self._clock = catalog, ttl_s, patience_s, clock
        self._last: Promoted | None = None
        self._error: AutomationError | None = None
        self._until = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def promoted(self) -> Promoted:
        """Raises what the catalog raises (Unreachable, BadAnswer) where there never was an answer."""
        if self._catalog is None:
            raise Unreachable("catalog", why="no artifact server is configured")
        if self._clock() >= self._until:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(self._catalog))
            waited, _ = await asyncio.wait({self._asking}, timeout=None if self._last is None else self._patience_s)
            if not waited and self._last is not None:
                return replace(self._last, stale=True)
        if self._last is not None:
            return self._last
        assert self._error is not None  # asked, and no answer
        raise self._error

    def forget(self) -> None:
        """The next request asks, and waits for the answer."""
        self._last, self._error, self._until = None, None, 0.0

    async def _ask(self, catalog: Catalog) -> None:
        try:
            artifacts = await catalog.artifacts()
        except AutomationError as error:
            self._error = error
            self._last = replace(self._last, stale=True) if self._last is not None else None
        else:
            self._error, self._last = None, Promoted([a for a in artifacts if a.state == "promoted"], catalog.stale)
        self._until = self._clock() + self._ttl_s
