"""VMIDs: the lowest free one, never one that waits in quarantine or was burnt, cheap among ten thousand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import insert

from flows.errors import Conflict
from flows.state import tables as t
from flows.state import vmids
from flows.state.database import Database
from flows.state.vmids import Reservation

DAY = 86_400_000
FIRST, LAST = 10_000, 10_004


async def reserve(db: Database, server: str = "server", first: int = FIRST, last: int = LAST) -> int:
    async with db.write() as tx:
        return await vmids.reserve(tx, server, first, last)


async def test_hands_out_the_lowest_until_none_is_left(timed: Database) -> None:
    assert [await reserve(timed) for _ in range(5)] == [10_000, 10_001, 10_002, 10_003, 10_004]
    with pytest.raises(Conflict, match="no free VMID"):
        await reserve(timed)


async def test_numbers_outside_the_range_do_not_count(timed: Database) -> None:
    assert await reserve(timed, first=500, last=500) == 500
    assert await reserve(timed, first=502, last=510) == 502
    assert await reserve(timed, first=500, last=510) == 501
    assert await reserve(timed, first=500, last=510) == 503


async def test_quarantine_holds_until_it_is_due(timed: Database, clock: Any) -> None:
    taken = [await reserve(timed) for _ in range(5)]
    async with timed.write() as tx:
        assert await vmids.quarantine(tx, taken[2], tx.now + DAY)
    clock.advance(DAY - 1)
    with pytest.raises(Conflict):
        await reserve(timed)
    clock.advance(1)
    assert await reserve(timed, "next") == taken[2]


async def test_a_due_one_waits_while_others_are_free(timed: Database, clock: Any) -> None:
    await reserve(timed)
    async with timed.write() as tx:
        await vmids.quarantine(tx, 10_000, tx.now + DAY)
    clock.advance(2 * DAY)
    assert await reserve(timed) == 10_001
    async with timed.write() as tx:
        assert await vmids.purge(tx) == 1
    assert await reserve(timed) == 10_000


async def test_releasing_twice_keeps_the_later_end_and_never_takes_from_the_next_owner(timed: Database, clock: Any) -> None:
    vmid = await reserve(timed, "old")
    async with timed.write() as tx:
        assert await vmids.quarantine(tx, vmid, tx.now + DAY, server_id="old")
        assert await vmids.quarantine(tx, vmid, tx.now + 2 * DAY, server_id="old")
        assert not await vmids.quarantine(tx, vmid, tx.now + 1, server_id="old")
    clock.advance(2 * DAY)
    async with timed.write() as tx:
        await vmids.purge(tx)
    assert await reserve(timed, "new") == vmid
    async with timed.write() as tx:
        assert not await vmids.quarantine(tx, vmid, tx.now + DAY, server_id="old")
        assert [(r.state, r.server_id) for r in await vmids.list_(tx)] == [(Reservation.RESERVED, "new")]


async def test_burnt_stays_burnt_until_a_person_looked(timed: Database, clock: Any) -> None:
    vmid = await reserve(timed)
    async with timed.write() as tx:
        await vmids.burn(tx, vmid, "somebody else's container")
        await vmids.burn(tx, 10_001, "never ours")
        assert not await vmids.quarantine(tx, vmid, tx.now + 1)
    clock.advance(1000 * DAY)
    assert await reserve(timed) == 10_002
    async with timed.write() as tx:
        assert await vmids.purge(tx) == 0
        assert await vmids.unburn(tx, vmid)
        assert not await vmids.unburn(tx, vmid)
        assert [r.vmid for r in await vmids.list_(tx, state=Reservation.BURNT)] == [10_001]
    assert await reserve(timed) == vmid


async def test_ten_thousand_taken_ones_cost_one_short_query(timed: Database) -> None:
    rows = [{"vmid": v, "state": "reserved", "server_id": "x", "since": 0, "until": None, "reason": ""} for v in range(10_000, 19_990)]
    async with timed.write() as tx:
        await tx.execute(insert(t.vmids), rows)
    times = []
    for expected in range(19_990, 20_000):
        begun = time.perf_counter()
        assert await reserve(timed, first=10_000, last=19_999) == expected
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.1  # a few milliseconds; the rest is room for a busy machine
    with pytest.raises(Conflict):
        await reserve(timed, first=10_000, last=19_999)


class VmidMachine(RuleBasedStateMachine):
    """Five numbers, any order of calls: nobody gets what another has, what is burnt, or what is not due."""

    def __init__(self, url: str, clock: Any) -> None:
        super().__init__()
        self.clock = clock
        self.runner = asyncio.Runner()
        self.db = Database(url, clock=clock)
        self.model: dict[int, tuple[str, int | None]] = {}

    def teardown(self) -> None:
        self.runner.run(self.db.close())
        self.runner.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def run() -> Any:
            async with self.db.write() as tx:
                return await function(tx, *arguments)

        return self.runner.run(run())

    @rule(ms=st.sampled_from([1, 999, 1_000]))
    def time_passes(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule()
    def reserve(self) -> None:
        free = [v for v in range(FIRST, LAST + 1) if v not in self.model]
        due = [v for v, (state, until) in self.model.items() if state == "quarantined" and until is not None and until <= self.clock.now]
        try:
            vmid = self.call(vmids.reserve, "server", FIRST, LAST)
        except Conflict:
            assert not free
            assert not due
            return
        assert vmid == min(free or due)
        if not free:
            for v in due:
                del self.model[v]
        self.model[vmid] = ("reserved", None)

    @rule(vmid=st.integers(FIRST, LAST), after=st.sampled_from([1_000, 2_000]))
    def quarantine(self, vmid: int, after: int) -> None:
        state, until = self.model.get(vmid, ("reserved", None))
        end = self.clock.now + after
        self.call(vmids.quarantine, vmid, end)
        if state != "burnt":
            self.model[vmid] = ("quarantined", max(end, until or 0))

    @rule(vmid=st.integers(FIRST, LAST))
    def burn(self, vmid: int) -> None:
        self.call(vmids.burn, vmid, "test")
        self.model[vmid] = ("burnt", None)

    @rule(vmid=st.integers(FIRST, LAST))
    def unburn(self, vmid: int) -> None:
        assert self.call(vmids.unburn, vmid) == (self.model.get(vmid, ("", None))[0] == "burnt")
        if self.model.get(vmid, ("", None))[0] == "burnt":
            del self.model[vmid]

    @rule()
    def purge(self) -> None:
        due = [v for v, (state, until) in self.model.items() if state == "quarantined" and until is not None and until <= self.clock.now]
        assert self.call(vmids.purge) == len(due)
        for v in due:
            del self.model[v]

    @invariant()
    def the_database_agrees(self) -> None:
        assert {r.vmid: (r.state.value, r.until) for r in self.call(vmids.list_)} == self.model


def test_vmids_agree_with_their_model(fresh: Callable[[], str], clock: Any) -> None:
    run_state_machine_as_test(
        lambda: VmidMachine(fresh(), clock),
        settings=settings(max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)),
    )
