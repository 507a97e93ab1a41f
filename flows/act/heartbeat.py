"""Keeps a lease alive beside the work, and ends the work when the lease is lost.

A heartbeat is not progress: it proves only that the holder lives. A holder that cannot renew ends one margin before
its lease expires, so that whoever takes over never meets it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

import structlog

from flows.act.tasks import ended
from flows.errors import DeadlineExceeded, Fenced, Temporary
from flows.settings import TimingSettings
from flows.state import control, leases
from flows.state.database import Database, Tx

log = structlog.get_logger(__name__)


def _heard(renewal: asyncio.Task[None]) -> None:
    """One that failed when nobody waited for it any more is no news: without a look asyncio would report it as a defect."""
    if not renewal.cancelled():
        renewal.exception()


class Heartbeat:
    """``async with Heartbeat(...) as beat:`` — the body is cancelled with Fenced when somebody newer holds the lease."""

    def __init__(
        self, database: Database, timing: TimingSettings, subject: str, token: int, abandon: Callable[[], None], generation: int | None = None
    ) -> None:
        """With ``generation``, a lease of an older one is lost: a restored database knows its token and has forgotten what came after."""
        self._database, self._timing, self._subject, self.token = database, timing, subject, token
        self._abandon, self._generation = abandon, generation
        self._expires = time.monotonic() + timing.lease_s
        self._task: asyncio.Task[None] | None = None
        self._body: asyncio.Task[object] | None = None
        self.lost: Fenced | None = None

    @property
    def left_s(self) -> float:
        """Seconds that the lease still holds, counted from before the renewal was sent."""
        return self._expires - time.monotonic()

    async def renew(self) -> None:
        """Renews now. Raises Fenced when the lease is another's."""
        sent = time.monotonic()
        async with self._database.write() as tx:
            await self.check_generation(tx)
            await leases.renew(tx, self._subject, self.token, int(self._timing.lease_s * 1000))
        self._expires = sent + self._timing.lease_s

    async def check_generation(self, tx: Tx) -> None:
        """Raises Fenced once the generation is a newer one."""
        if self._generation is not None and (present := await control.generation(tx)) != self._generation:
            raise Fenced(f"lease of {self._subject}", why=f"generation {self._generation} was superseded by {present}")

    async def room_for(self, seconds: float) -> None:
        """Makes sure that a call of this length plus the margin ends under the lease, as the database sees it now: one that was revoked
        since the last heartbeat gives no room. Raises Fenced, DeadlineExceeded, or what the database raises."""
        await self.renew()
        if self.left_s < seconds + self._timing.margin_s:
            raise DeadlineExceeded("lease", why=f"{self.left_s:.0f} s left are too few for a call of {seconds:.0f} s")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._timing.heartbeat_s)
            while (error := await self._attempt()) is not None:
                if isinstance(error, Fenced):
                    if not await self._given_back():
                        self.lost = error
                        log.warning("lease lost", subject=self._subject, token=self.token)
                        if self._body is not None:
                            self._body.cancel()
                    return
                if self.left_s <= self._timing.margin_s:
                    log.error("lease cannot be renewed, ending", subject=self._subject, error=str(error))
                    self._abandon()
                    return
                await asyncio.sleep(min(1.0, self._timing.heartbeat_s / 4))

    async def _attempt(self) -> BaseException | None:
        """One renewal and why it failed, whatever the reason: a heartbeat that stops by surprise would leave its work running. Not waited
        for beyond the margin: one that hangs, and even one that cannot be cancelled, must not keep the holder from ending in time."""
        renewal = asyncio.create_task(self.renew(), name=f"renewal {self._subject}")
        renewal.add_done_callback(_heard)
        try:
            await asyncio.wait({renewal}, timeout=max(0.0, self.left_s - self._timing.margin_s))
        finally:
            if not renewal.done():
                renewal.cancel()
                await asyncio.wait({renewal}, timeout=min(0.1, self._timing.margin_s / 2))
        if not renewal.done() or renewal.cancelled():
            return TimeoutError("the database does not answer")
        return renewal.exception()

    async def _given_back(self) -> bool:
        """Whether the body itself released the lease a moment ago: then it is at its end, and nothing was lost."""
        try:
            async with self._database.read() as tx:
                lease = await leases.get(tx, self._subject)
        except Temporary:
            return False
        return lease is not None and lease.token == self.token and lease.holder is None

    async def __aenter__(self) -> Heartbeat:
        self._body = asyncio.current_task()
        self._task = asyncio.create_task(self._beat(), name=f"heartbeat {self._subject}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._task is not None and self._body is not None
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        try:
            await ended(self._task)
        except asyncio.CancelledError:
            if self.lost is None:
                raise
            cancelled = True
        if self.lost is not None:
            if cancelled:
                self._body.uncancel()
            raise self.lost
