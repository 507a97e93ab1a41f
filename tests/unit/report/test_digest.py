"""The daily digest: every line from real rows, once a day."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import insert

from flows.decide.calendar import Calendar
from flows.decide.message import render, size
from flows.domain.agent import Observation
from flows.domain.event import Channel, Event, EventKind, Route, Severity
from flows.domain.finding import Action, BrakeScope, Check, EpisodeChange, Finding, Outcome, Policy, Repair, Transition
from flows.domain.server import Desired, ServerState
from flows.report import digest
from flows.state import backups, brakes, episodes, observations, outbox, repairs
from flows.state import tables as t
from flows.state.database import Database
from tests.unit.report.support import Clock, Rows

DAY = 86_400_000
BERLIN = Calendar(timezone="Europe/Berlin")


def lines(event: Event) -> dict[str, str]:
    found = event.facts["lines"]
    assert isinstance(found, list)
    return dict(line.split(": ", 1) for line in found)


async def test_a_quiet_day(db: Database) -> None:
    event = await digest.send(db, BERLIN)
    assert event.what == "daily digest 2025-10-09: all is well"
    assert lines(event) == {
        "fleet": "0 servers (none); 0 of 0 that should run are ready",
        "findings": "none open",
        "repairs": "none in 24 h",
        "backups": "0 fresh, 0 late",
        "queues": "provisioning 0, operations 0, repairs 0; outbox 0",
        "breakers": "none open",
        "reviews": "none pending",
    }


async def test_a_day_with_everything(db: Database, clock: Clock, rows: Rows) -> None:
    def order(server: str, check: Check = Check.DNS_RECORD) -> Repair:
        return Repair(Finding(check, server, "x", level=1, server_id=server, action=Action.PUBLISH_DNS), Action.PUBLISH_DNS)

    async with db.write() as tx:
        fresh = await rows.server(tx, state=ServerState.ACTIVE, activated_at=tx.now - 3 * DAY)
        late = await rows.server(tx, state=ServerState.ACTIVE, activated_at=tx.now - 3 * DAY)
        await rows.server(tx, state=ServerState.ACTIVE, activated_at=tx.now - 1_000, desired=Desired.STOPPED)  # too young to owe a backup
        await rows.server(tx, state=ServerState.ACTIVE, activated_at=tx.now - 3 * DAY, backup_policy="none", desired=Desired.STOPPED)
        await rows.operation(tx)  # one more server, creating
        await observations.upsert(tx, [Observation(fresh.id, tx.now, True, True, None), Observation(late.id, tx.now, True, False, None)])
        for server, at in ((fresh, tx.now - 3_600_000), (late, tx.now - 2 * DAY)):
            await backups.add(tx, server_id=server.id, type_="w", reason="r", size_bytes=1, sha256="0", location="/", verified_at=at)
        for outcome in (Outcome.FAILED, Outcome.FAILED, Outcome.UNVERIFIED, Outcome.REPAIRED):
            await repairs.outcome(tx, await repairs.intent(tx, order(late.id), 1), outcome)
        finding = order(late.id).finding
        await episodes.apply(tx, [EpisodeChange(Transition.OPENED, finding.key, finding, None, "breaker_open", announce=True)])
        await brakes.pause(tx, BrakeScope.SERVER, fresh.id, "looking", "admin:eve")
        await tx.execute(
            insert(t.reviews).values(
                id="r1", server_id=late.id, check="dns_record", action="publish_dns", plan_hash="0", plan={}, requested_by="x",
                requested_at=tx.now, expires_at=tx.now + DAY,
            )
        )  # fmt: skip
        await outbox.put(tx, Event(EventKind.HOST_DOWN, "k", "w"), Route(Channel.CRITICAL, True, Severity.CRITICAL))
        [message] = await outbox.claim(tx, "d", tx.now, 1)
        await outbox.failed(tx, message, "d", retry_at=tx.now, give_up_ms=0, error="x")
    event = await digest.send(db, BERLIN)
    assert event.what == "daily digest 2025-10-09"
    assert lines(event) == {
        "fleet": "5 servers (1 creating, 4 active); 1 of 2 that should run are ready",
        "findings": "1 open (1 dns_record); 1 of them need a person",
        "repairs": "4 in 24 h (2 failed, 1 repaired, 1 unverified); failed: 3 dns_record",
        "backups": f"2 fresh, 1 late ({late.name})",
        "queues": "provisioning 1, operations 0, repairs 0; outbox 0, 1 never got through",
        "breakers": f"{late.name} open",
        "reviews": "1 pending",
        "paused": fresh.name,
    }
    assert "`zlh status`" in render(event)


async def test_once_a_day_by_the_operators_calendar(db: Database, clock: Clock) -> None:
    async def waiting() -> list[Any]:
        async with db.write() as tx:
            return await outbox.claim(tx, f"d{tx.now}", tx.now + 10 * DAY, 50)

    clock.now = int(datetime(2025, 10, 25, 23, 59, tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000)
    await digest.send(db, BERLIN)
    await digest.send(db, BERLIN)
    [message] = await waiting()
    assert (message.key, message.channel, message.ping) == ("digest/2025-10-25", Channel.HEALTH, False)
    clock.advance(60_000)
    await digest.send(db, BERLIN)
    assert [m.key for m in await waiting()] == ["digest/2025-10-26"]


async def test_a_bad_day_of_a_large_fleet_still_fits(db: Database, rows: Rows) -> None:
    async with db.write() as tx:
        for number in range(60):
            server = await rows.server(tx, name="x" * 60 + f"{number:03}", state=ServerState.ACTIVE, activated_at=tx.now - 3 * DAY)
            await brakes.pause(tx, BrakeScope.SERVER, server.id, "r", "admin:eve")
        event = await digest.build(tx, BERLIN, Policy())
    text = render(event)
    assert size(text) <= 2_000
    assert "and 52 more" in text
    assert "`zlh status`" in text
