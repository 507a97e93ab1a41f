"""One repair from intent to outcome: each way it can end, what is recorded, and who holds the server afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import select, update

from flows.act import repair as repairing
from flows.act.deps import Deps
from flows.act.repairs.edge import PublishDns
from flows.domain.agent import WorkloadState
from flows.domain.finding import Action, BrakeScope, Check, Outcome, Repair
from flows.domain.lease import LeaseKind
from flows.domain.server import Edge, Server
from flows.errors import AmbiguousEffect, AutomationError, Busy, DeadlineExceeded, Fenced, TaskFailed, Unproven, Unreachable
from flows.state import brakes, epochs, leases, repairs
from flows.state import tables as t
from flows.state.database import Tx
from tests.unit.act import fakes
from tests.unit.act.conftest import House

LOST = AmbiguousEffect("dns", why="no answer")


async def _carry_out(
    house: House, server: Server, *, deps: Deps | None = None, action: Action = Action.PUBLISH_DNS, left_s: float = 40.0
) -> Outcome | None:
    """A sweep with this one repair."""
    deps = deps or house.deps()
    epoch = await epochs.begin(deps.database, deps.holder, 30_000)
    assert epoch is not None
    try:
        check = Check.DNS_RECORD if action is Action.PUBLISH_DNS else Check.PROXY_REGISTRATION
        return await repairing.carry_out(deps, Repair(fakes.finding(server, check, action), action), epoch, left_s)
    finally:
        await epochs.end(deps.database, epoch, deps.holder)


async def _recorded(house: House) -> list[str | None]:
    return [r.outcome for r in await house.rows(select(t.repairs.c.outcome).order_by(t.repairs.c.intent_at))]


async def _holder(house: House, server: Server) -> str | None:
    async with house.db.read() as tx:
        lease = await leases.get(tx, server.id)
    return lease.holder if lease is not None else None


async def _told(house: House) -> list[str]:
    return sorted(r.kind for r in await house.rows(select(t.outbox.c.kind)))


@pytest.fixture
async def server(house: House) -> Server:
    """Ready and open, and nobody knows its name."""
    house.world.workload = WorkloadState.RUNNING
    return await house.server(edge=Edge.OPEN)


async def test_an_intent_is_written_before_the_effect_and_its_outcome_after(house: House, server: Server) -> None:
    seen: list[object] = []

    async def look() -> None:
        seen.append((await _recorded(house), await _holder(house, server)))

    house.world.before["publish"] = [look]
    assert await _carry_out(house, server) is Outcome.REPAIRED
    assert seen == [([None], "me")]
    assert await _recorded(house) == ["repaired"] and await _holder(house, server) is None
    assert await _told(house) == ["controller_action", "repair_succeeded"]
    lines = [r.action for r in await house.rows(select(t.audit.c.action).where(t.audit.c.action.like("repair.%")).order_by(t.audit.c.id))]
    assert lines == ["repair.publish_dns", "repair.repaired"]


async def test_what_somebody_healed_meanwhile_is_left_alone(house: House, server: Server) -> None:
    assert await _carry_out(house, server) is Outcome.REPAIRED
    assert await _carry_out(house, server) is Outcome.ALREADY_HEALED
    assert house.world.times("publish") == 1


async def test_an_effect_that_changed_nothing_has_failed(house: House, server: Server) -> None:
    async def undo() -> None:
        house.world.records.clear()
        house.world.owners.clear()

    house.world.after["publish"] = [undo]
    assert await _carry_out(house, server) is Outcome.FAILED
    assert await _holder(house, server) is None


@pytest.mark.parametrize("error", [LOST, Busy("bridge"), Unreachable("bridge"), DeadlineExceeded("bridge")])
@pytest.mark.parametrize(("arrives", "outcome"), [(True, Outcome.REPAIRED), (False, Outcome.FAILED)])
async def test_after_a_temporary_failure_the_condition_is_read_again(
    house: House, server: Server, error: AutomationError, arrives: bool, outcome: Outcome
) -> None:
    """An answer that was lost says nothing about the effect; the source does."""
    (house.world.after if arrives else house.world.before)["register"] = [error]
    assert await _carry_out(house, server, action=Action.REGISTER_PROXY) is outcome
    assert await _recorded(house) == [outcome.value] and await _holder(house, server) is None


async def test_what_was_refused_has_failed_and_says_why(house: House, server: Server) -> None:
    house.world.before["register"] = [TaskFailed("bridge", why="refused")]
    assert await _carry_out(house, server, action=Action.REGISTER_PROXY) is Outcome.FAILED
    assert [r.detail for r in await house.rows(select(t.repairs.c.detail))] == ["bridge · refused"]


async def test_what_was_done_and_cannot_be_read_is_unverified(house: House, server: Server) -> None:
    house.world.before["proxy.view"] = [None, None, Unproven("bridge", why="half a list")]
    assert await _carry_out(house, server, action=Action.REGISTER_PROXY) is Outcome.UNVERIFIED
    assert await _recorded(house) == ["unverified"] and await _holder(house, server) is None


async def test_a_source_that_does_not_answer_at_first_changes_nothing(house: House, server: Server) -> None:
    house.world.before["proxy.view"] = [Unreachable("bridge", why="down")]
    assert await _carry_out(house, server, action=Action.REGISTER_PROXY) is Outcome.FAILED
    assert house.world.times("register") == 0


async def _closed_later(house: House, server: Server) -> None:
    """The call may still arrive: its lease keeps others away until it expires, then a later sweep closes the intent."""
    assert await _recorded(house) == [None]
    assert await _holder(house, server) == "me"
    async with house.db.write() as tx:
        assert await repairs.close_abandoned(tx) == []
        await tx.execute(update(t.leases).values(expires_at=0))
    async with house.db.write() as tx:
        [row] = await repairs.close_abandoned(tx)
        await repairing.announce_late(house.deps(), tx, row, Outcome.UNVERIFIED, "nobody could tell")
        await leases.take(tx, server.id, LeaseKind.REPAIR, "another", 1_000)
    assert await _recorded(house) == ["unverified"]
    assert await _told(house) == ["controller_action"]


async def test_a_call_that_may_still_arrive_keeps_intent_and_lease_open(house: House, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PublishDns, "limit_s", 0.2)

    async def hang() -> None:
        await asyncio.sleep(1.0)

    house.world.before["publish"] = [hang]
    assert await _carry_out(house, server) is Outcome.UNVERIFIED
    await _closed_later(house, server)


async def test_so_does_a_lost_answer_that_cannot_be_looked_for(house: House, server: Server) -> None:
    house.world.after["register"] = [LOST]
    house.world.before["proxy.view"] = [None, None, Unreachable("bridge", why="down")]
    assert await _carry_out(house, server, action=Action.REGISTER_PROXY) is Outcome.UNVERIFIED
    await _closed_later(house, server)


async def test_an_outcome_that_the_database_does_not_take_is_left_to_a_later_sweep(house: House, server: Server) -> None:
    class Gone:
        def __init__(self) -> None:
            self.writes = 0

        def __getattr__(self, name: str) -> object:
            return getattr(house.db, name)

        def write(self, *, epoch: int | None = None) -> object:
            self.writes += epoch is not None
            if epoch is not None and self.writes > 1:
                raise Unreachable("database", why="gone for a moment")
            return house.db.write(epoch=epoch)

    assert await _carry_out(house, server, deps=house.deps(database=Gone())) is Outcome.UNVERIFIED
    await _closed_later(house, server)


async def test_a_peer_that_knows_a_newer_holder_fences_the_repair(house: House, server: Server) -> None:
    house.world.before["register"] = [Fenced("bridge", why="a higher token")]
    assert await _carry_out(house, server, action=Action.REGISTER_PROXY) is Outcome.FENCED
    assert await _recorded(house) == ["fenced"]


async def test_a_server_under_a_lease_is_not_touched(house: House, server: Server) -> None:
    async with house.db.write() as tx:
        await leases.take(tx, server.id, LeaseKind.BACKUP, "another", 60_000)
    assert await _carry_out(house, server) is None
    assert await _recorded(house) == [] and house.world.calls == []


@pytest.mark.parametrize("scope", list(BrakeScope))
async def test_a_pause_since_the_plan_was_made_stops_the_repair(house: House, server: Server, scope: BrakeScope) -> None:
    target = {BrakeScope.ALL: "", BrakeScope.HOST: server.node, BrakeScope.SERVER: server.id}[scope]
    async with house.db.write() as tx:
        await brakes.pause(tx, scope, target, "test", "test")
    assert await _carry_out(house, server) is None
    assert await _recorded(house) == [] and house.world.calls == []


async def test_without_time_left_nothing_begins(house: House, server: Server) -> None:
    assert await _carry_out(house, server, left_s=PublishDns.limit_s / 2) is None
    assert await _recorded(house) == []


async def test_the_third_failure_within_the_hour_opens_the_breaker_once(house: House, server: Server) -> None:
    house.world.before["publish"] = [TaskFailed("dns", why="refused")] * 4
    for _ in range(4):
        assert await _carry_out(house, server) is Outcome.FAILED
    assert (await _told(house)).count("breaker_opened") == 1


class _Forgets:
    """A database that commits the first transaction of a sweep's act, and whose answer to that is lost."""

    def __init__(self, house: House) -> None:
        self._db, self._lost = house.db, False

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    @asynccontextmanager
    async def write(self, *, epoch: int | None = None) -> AsyncIterator[Tx]:
        async with self._db.write(epoch=epoch) as tx:
            yield tx
        if epoch is not None and not self._lost:
            self._lost = True
            raise Unreachable("database", why="the connection broke at the commit")


async def test_an_intent_whose_commit_was_not_answered_counts_once(house: House, server: Server) -> None:
    """It stands, as its actor's that died would: nothing was done, its lease runs out, a later sweep closes it."""
    assert await _carry_out(house, server, deps=house.deps(database=_Forgets(house))) is Outcome.UNVERIFIED
    assert house.world.times("publish") == 0
    await _closed_later(house, server)
    assert [r.counted for r in await house.rows(select(t.repairs.c.counted))] == [True]


async def test_an_order_whose_commit_was_not_answered_is_ordered(house: House, server: Server) -> None:
    """Its operation lives, and ends it."""
    house.world.before["agent.status"] = [Unreachable("agent", why="refused")]
    outcome = await _carry_out(house, server, deps=house.deps(database=_Forgets(house)), action=Action.RESTART_AGENT)
    assert outcome is Outcome.ORDERED
    assert await _recorded(house) == [None] and await _told(house) == []
    assert [r.kind for r in await house.rows(select(t.operations.c.kind))] == ["restart_agent"]
