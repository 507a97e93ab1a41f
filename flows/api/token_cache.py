"""Good tokens, remembered for a moment: most requests of a busy customer then cost no question to the database."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from flows.state import tokens
from flows.state.database import Database
from flows.state.tokens import Caller

#: Seconds during which a token that was good is believed without asking again: a revocation takes at most this long.
CACHE_S = 2.0
_CACHED_TOKENS = 4096


class TokenCache:
    """Good tokens for a moment, by their hash; bad ones are asked for every time. ``clock`` is monotonic seconds."""

    def __init__(self, database: Database, ttl_s: float = CACHE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._ttl_s, self._clock = database, ttl_s, clock
        self._known: dict[bytes, tuple[Caller, float]] = {}

    async def caller(self, plaintext: str) -> Caller | None:
        """None: unknown, expired or revoked. Raises Unreachable."""
        key = hashlib.sha256(plaintext.encode()).digest()
        known = self._known.get(key)
        if known is not None and self._clock() < known[1]:
            return known[0]
        self._known.pop(key, None)
        until = self._clock() + self._ttl_s  # from before the question: the answer may be old already when it comes
        async with self._database.read() as tx:
            caller = await tokens.authenticate(tx, plaintext)
        if caller is not None:
            if len(self._known) >= _CACHED_TOKENS:
                self._known.pop(next(iter(self._known)))
            self._known[key] = (caller, until)
        return caller
