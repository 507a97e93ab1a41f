"""The heartbeat: keeps a lease, ends its work when the lease is lost, and its process in time when it cannot tell."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flows.act.heartbeat import Heartbeat
from flows.act.tasks import ended
from flows.domain.lease import Lease, LeaseKind
from flows.errors import DeadlineExceeded, Fenced, Unreachable
from flows.settings import TimingSettings
from flows.state import leases
from flows.state.database import Database
from tests.unit.act.fakes import settings

TIMING = settings(heartbeat_s=0.05, lease_s=2.0, margin_s=0.8, call_s=0.3).timing
#: Where nothing may expire, however busy the machine is.
LONG = settings(heartbeat_s=0.05, lease_s=30, margin_s=1.0, call_s=0.3).timing


async def _taken(db: Database, ttl_ms: int = 2_000) -> Lease:
    async with db.write() as tx:
        return await leases.take(tx, "s1", LeaseKind.OPERATION, "me", ttl_ms)


def _beat(db: Any, lease: Lease, timing: TimingSettings = TIMING, abandoned: list[float] | None = None) -> Heartbeat:
    return Heartbeat(db, timing, lease.subject, lease.token, lambda: (abandoned if abandoned is not None else []).append(time.monotonic()))


async def test_a_lease_is_kept_beyond_its_expiry(db: Database) -> None:
    lease = await _taken(db)
    async with _beat(db, lease):
        await asyncio.sleep(2.5)
    async with db.read() as tx:
        found = await leases.held(tx, "s1", lease.token)
        assert not found.expired(tx.now)


async def test_a_lost_lease_cancels_the_body_with_fenced(db: Database) -> None:
    lease = await _taken(db, 30_000)
    began = time.monotonic()
    with pytest.raises(Fenced):
        async with _beat(db, lease, LONG):
            async with db.write() as tx:
                await leases.revoke(tx, "s1")
            await asyncio.sleep(60)
    assert time.monotonic() - began < 20
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_a_lease_that_the_body_gave_back_is_not_lost(db: Database) -> None:
    lease = await _taken(db)
    async with _beat(db, lease) as beat:
        async with db.write() as tx:
            await leases.release(tx, "s1", lease.token)
        await asyncio.sleep(0.3)
    assert beat.lost is None


class Broken:
    """A database whose transactions end as told."""

    def __init__(self, how: str) -> None:
        self.how, self.mended = how, False

    @contextlib.asynccontextmanager
    async def write(self, **_: object) -> AsyncIterator[None]:
        if self.how == "refuses":
            raise Unreachable("database", why="refused")
        if self.how == "surprises":
            raise RuntimeError("a bug")
        while True:  # a thread that is stuck on a dead disk cannot be cancelled
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                if self.how == "hangs" or self.mended:
                    raise
        yield

    read = write


@pytest.mark.parametrize("how", ["refuses", "hangs", "hangs for good", "surprises"])
async def test_who_cannot_renew_ends_one_margin_before_the_expiry(how: str) -> None:
    abandoned: list[float] = []
    database, began = Broken(how), time.monotonic()
    async with _beat(database, Lease("s1", 7), abandoned=abandoned):
        while not abandoned and time.monotonic() - began < 5:
            await asyncio.sleep(0.01)
    assert len(abandoned) == 1
    assert abandoned[0] - began <= TIMING.lease_s - TIMING.margin_s / 4, "too late"
    database.mended = True


async def test_room_is_made_by_renewing(db: Database) -> None:
    lease = await _taken(db)
    beat = _beat(db, lease)
    await asyncio.sleep(1.5)
    assert beat.left_s < 0.6
    await beat.room_for(0.3)
    assert beat.left_s > 1.1


async def test_there_is_no_room_for_a_call_longer_than_the_lease(db: Database) -> None:
    with pytest.raises(DeadlineExceeded):
        await _beat(db, await _taken(db)).room_for(1.3)


async def test_there_is_no_room_under_a_lease_that_was_revoked_a_moment_ago(db: Database) -> None:
    lease = await _taken(db)
    beat = _beat(db, lease)
    async with db.write() as tx:
        await leases.revoke(tx, "s1")
    with pytest.raises(Fenced):
        await beat.room_for(0.1)


async def test_a_time_limit_that_strikes_while_a_heartbeat_ends_is_not_lost(db: Database) -> None:
    """Swallowed here it would never strike again: the body would go on without limit."""
    lease = await _taken(db)
    beat = _beat(db, lease)

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)
            raise

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            async with beat:
                assert beat._task is not None
                beat._task.cancel()
                beat._task = asyncio.create_task(slow())
                await asyncio.sleep(0)
            await asyncio.sleep(30)


async def test_ended_waits_for_the_end_and_keeps_the_tasks_error_to_itself() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0)
            seen.append("over")
            raise ValueError("at the end")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await ended(task)
    assert seen == ["over"]


async def test_a_renewal_that_fails_when_nobody_waits_is_no_defect(db: Database) -> None:
    """The body ends while a renewal is on its way: what became of it is nobody's business any more."""
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    begun, gone = asyncio.Event(), asyncio.Event()
    lease = await _taken(db)

    class Late(Heartbeat):
        async def renew(self) -> None:
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            gone.set()
            raise Fenced("lease", why="given back")

    async with Late(db, TIMING, lease.subject, lease.token, lambda: None):
        await asyncio.wait_for(begun.wait(), 10)
    await asyncio.wait_for(gone.wait(), 10)
    gc.collect()
    assert reported == []
