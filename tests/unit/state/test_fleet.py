"""The fleet in one moment: complete, and by as many statements for one server as for hundreds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import event, update

from flows.domain.agent import Observation
from flows.domain.finding import Action, BrakeScope, Check, EpisodeChange, Finding, Outcome, Repair, Transition
from flows.domain.lease import LeaseKind
from flows.domain.operation import Direction, OperationKind, OperationState, Queue, StepName
from flows.domain.server import BillingState, ServerState
from flows.domain.snapshot import BackupFact, QueueFact, SourceFact
from flows.state import (
    attempts,
    backups,
    brakes,
    control,
    customers,
    episodes,
    fleet,
    journal,
    leases,
    observations,
    operations,
    repairs,
    servers,
    sources,
)
from flows.state import tables as t
from flows.state.database import Database

HOUR = 3_600_000


async def test_an_empty_database_is_an_empty_fleet(timed: Database) -> None:
    async with timed.read() as tx:
        known = await fleet.load(tx)
    assert known.servers == {}
    assert known.max_level == 1
    assert [(q.queue, q.waiting, q.oldest_at, q.progress_at) for q in known.queues] == [
        (queue, 0, None, None) for queue in ("provisioning", "operations", "repairs")
    ]


async def test_everything_is_there(timed: Database, clock: Any, make: Any) -> None:
    finding = Finding(Check.DNS_RECORD, "s", "missing", level=1, server_id="s", action=Action.PUBLISH_DNS)
    async with timed.write() as tx:
        old = await repairs.intent(tx, Repair(finding, Action.PUBLISH_DNS), 1)
        await repairs.outcome(tx, old, Outcome.REPAIRED)
        lasting = await repairs.intent(tx, Repair(finding, Action.PUBLISH_DNS), 1)
    clock.advance(2 * HOUR)
    async with timed.write() as tx:
        creating = await make.server(tx)
        active = await make.server(tx, state=ServerState.ACTIVE, activated_at=tx.now)
        gone = await make.server(tx, state=ServerState.DELETED)
        await customers.set_billing(tx, active.customer_id, BillingState.SUSPENDED, "admin:eve")
        live = await make.operation(tx, creating)
        over = await make.operation(tx, active, kind=OperationKind.STOP, queue=Queue.OPERATIONS)
        await operations.set_state(tx, over.id, OperationState.CANCELLED)
        await journal.begin(tx, live.id, StepName.CREATE_CONTAINER, Direction.DO, 1, tx.now + HOUR)
        await journal.begin(tx, over.id, StepName.STOP_WORKLOAD, Direction.DO, 1, tx.now + HOUR)
        lease = await leases.take(tx, active.id, LeaseKind.BACKUP, "backup", 60_000)
        free = await leases.take(tx, creating.id, LeaseKind.BACKUP, "backup", 60_000)
        await leases.release(tx, creating.id, free.token)
        brake = await brakes.pause(tx, BrakeScope.HOST, "pve1", "disk", "admin:eve")
        await episodes.apply(tx, [EpisodeChange(Transition.OPENED, finding.key, finding, None, "repairing")])
        seen = Observation(active.id, tx.now, True, True, None)
        await observations.upsert(tx, [seen])
        await backups.add(tx, server_id=active.id, type_="w", reason="r", size_bytes=1, sha256="0", location="/", verified_at=tx.now)
        await sources.upsert(tx, [SourceFact("dns", 1, tx.now, "no answer")], {"proxy:x": 1})
        recent = await repairs.intent(tx, Repair(finding, Action.PUBLISH_DNS), 2)
        await control.set_repair_level(tx, 2, "admin:eve")
    async with timed.read() as tx:
        known = await fleet.load(tx)
    assert set(known.servers) == {creating.id, active.id}
    assert known.servers[active.id] == active
    assert gone.id not in known.servers
    assert known.billing[active.customer_id] is BillingState.SUSPENDED
    assert set(known.operations) == {live.id}
    assert {o: [s.step for s in steps] for o, steps in known.steps.items()} == {live.id: [StepName.CREATE_CONTAINER]}
    assert known.leases == {active.id: lease}
    assert known.brakes == (brake,)
    assert set(known.episodes) == {"dns_record/s"}
    assert [r.id for r in known.repairs] == [lasting, recent]
    assert known.observations == {active.id: seen}
    assert known.backups == {active.id: BackupFact(active.id, clock.now)}
    assert known.sources == {"dns": SourceFact("dns", 1, clock.now, "no answer")}
    assert known.sightings == {"proxy:x": 1}
    assert known.max_level == 2


async def test_a_queue_that_only_waits_has_not_moved(timed: Database, clock: Any, make: Any) -> None:
    async def queue() -> QueueFact:
        async with timed.read() as tx:
            return next(q for q in await fleet.queues(tx) if q.queue == "provisioning")

    async with timed.write() as tx:
        first = await make.operation(tx)
        generation = await control.generation(tx)
    put_at = clock.now
    assert await queue() == QueueFact("provisioning", 1, put_at, None)
    clock.advance(60_000)
    async with timed.write() as tx:
        await attempts.claim_for_submission(tx, "d", tx.now + 1_000, 5)
        await attempts.submitted(tx, first.id, 1, "run")
        await make.operation(tx)
    assert await queue() == QueueFact("provisioning", 2, put_at, None)
    clock.advance(60_000)
    async with timed.write() as tx:
        await attempts.claim_run(tx, first.id, 1, generation, "run", 60_000)
    assert await queue() == QueueFact("provisioning", 1, put_at + 60_000, clock.now)
    moved = clock.now
    clock.advance(60_000)
    async with timed.write() as tx:
        await make.operation(tx)  # a new order is no progress
    assert await queue() == QueueFact("provisioning", 2, put_at + 60_000, moved)
    async with timed.write() as tx:
        await operations.set_state(tx, first.id, OperationState.SUCCEEDED)
    assert await queue() == QueueFact("provisioning", 2, put_at + 60_000, clock.now)


async def test_an_attempt_that_was_lost_is_no_progress(timed: Database, clock: Any, make: Any) -> None:
    """A worker whose runs die before they claim: however often the engine loses an attempt, the order has waited since it was put."""
    async with timed.write() as tx:
        order = await make.operation(tx)
    put_at = clock.now
    for _ in range(3):
        clock.advance(6 * 60_000)
        async with timed.write() as tx:
            await attempts.next_attempt(tx, order.id)
    async with timed.read() as tx:
        known = await fleet.load(tx)
    assert next(q for q in known.queues if q.waiting) == QueueFact("provisioning", 1, put_at, None)
    assert known.operations[order.id].attempt_at == clock.now


async def test_the_number_of_statements_does_not_grow(timed: Database, make: Any) -> None:
    async def statements() -> int:
        seen: list[str] = []

        def note(*args: Any) -> None:
            seen.append(args[2])

        event.listen(timed.engine.sync_engine, "before_cursor_execute", note)
        async with timed.read() as tx:
            await fleet.load(tx)
        event.remove(timed.engine.sync_engine, "before_cursor_execute", note)
        return len(seen)

    async with timed.write() as tx:
        await make.operation(tx)
    one = await statements()
    async with timed.write() as tx:
        template = await make.server(tx)
        for number in range(300):
            server = await servers.create(
                tx,
                replace(template, id=f"s{number}", name=f"s{number}", vmid=20_000 + number, address=f"10.9.{number // 250}.{number % 250}"),
            )
            await make.operation(tx, server)
            await leases.take(tx, server.id, LeaseKind.BACKUP, "b", 60_000)
            await observations.upsert(tx, [Observation(server.id, tx.now, True, True, None)])
    assert await statements() == one <= 18


async def test_the_level_is_the_databases(timed: Database) -> None:
    async with timed.write() as tx:
        await tx.execute(update(t.control).where(t.control.c.name == "repair_level").values(value=0))
        assert (await fleet.load(tx)).max_level == 0
