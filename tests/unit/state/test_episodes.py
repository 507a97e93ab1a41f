"""Episodes on disk: transitions write rows and audit lines, persistence costs one statement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from flows.domain.finding import Check, EpisodeChange, EpisodeRow, Finding, Reason, Transition
from flows.state import audit, episodes
from flows.state.database import Database

T = Transition
FINDING = Finding(
    Check.AGENT_OFFLINE, "server-1", "agent is offline", level=2, server_id="server-1", remedy="zlh restart-agent x", evidence={"misses": 2}
)


def change(
    transition: Transition,
    finding: Finding = FINDING,
    *,
    reason: str = Reason.LEVEL_DISABLED,
    announce: bool = False,
    episode: EpisodeRow | None = None,
) -> EpisodeChange:
    closing = transition is T.CLOSED
    return EpisodeChange(transition, finding.key, None if closing else finding, episode, reason, announce)


async def apply(db: Database, *changes: EpisodeChange, **options: Any) -> dict[str, EpisodeRow]:
    async with db.write() as tx:
        await episodes.apply(tx, changes, **options)
    async with db.read() as tx:
        return await episodes.open_(tx)


async def lines(db: Database) -> list[tuple[str, str | None]]:
    async with db.read() as tx:
        return [(entry.action, entry.server_id) for entry in reversed(await audit.list_(tx))]


async def test_the_life_of_an_episode(timed: Database, clock: Any) -> None:
    opened = (await apply(timed, change(T.OPENED, reason=Reason.UNCONFIRMED)))[FINDING.key]
    assert (opened.reason, opened.summary, opened.remedy, opened.evidence) == (
        "unconfirmed", "agent is offline", "zlh restart-agent x", {"misses": 2},
    )  # fmt: skip
    assert (opened.opened_at, opened.last_seen_at, opened.escalated_at, opened.server_id) == (clock.now, clock.now, None, "server-1")
    clock.advance(60_000)
    escalated = (await apply(timed, change(T.ESCALATED, announce=True)))[FINDING.key]
    assert escalated == replace(opened, reason="level_disabled", last_seen_at=clock.now, escalated_at=clock.now)
    clock.advance(60_000)
    worse = replace(FINDING, severity=2, summary="worse", evidence={"misses": 9}, remedy="another")
    changed = (await apply(timed, change(T.CHANGED, worse, reason=Reason.PAUSED)))[FINDING.key]
    assert changed == replace(
        escalated, reason="paused", severity=2, summary="worse", evidence={"misses": 9}, remedy="another", last_seen_at=clock.now
    )
    clock.advance(86_400_000)
    recalled = (await apply(timed, change(T.RECALLED, worse, announce=True)))[FINDING.key]
    assert (recalled.recalled_at, recalled.escalated_at) == (clock.now, escalated.escalated_at)
    clock.advance(60_000)
    assert await apply(timed, change(T.CLOSED, reason="gone", announce=True, episode=recalled)) == {}
    async with timed.read() as tx:
        [closed] = await episodes.list_(tx)
        assert await episodes.get(tx, closed.id) == closed
    assert (closed.closed_at, closed.reason, closed.id) == (clock.now, "level_disabled", opened.id), "what stood in the way to its end"
    assert await lines(timed) == [(f"episode.{t}", "server-1") for t in ("opened", "escalated", "changed", "recalled", "closed")]


async def test_an_announced_opening_is_told(timed: Database, clock: Any) -> None:
    assert (await apply(timed, change(T.OPENED, announce=True)))[FINDING.key].escalated_at == clock.now


async def test_one_that_comes_back_is_a_new_episode(timed: Database) -> None:
    first = (await apply(timed, change(T.OPENED)))[FINDING.key]
    await apply(timed, change(T.CLOSED, episode=first))
    second = (await apply(timed, change(T.OPENED)))[FINDING.key]
    assert second.id != first.id
    both = await apply(timed, change(T.CLOSED, episode=second), change(T.OPENED))
    assert both[FINDING.key].id not in (first.id, second.id)


async def test_replaying_a_sweep_is_harmless(timed: Database, clock: Any) -> None:
    """An answer that was lost at the commit: the same changes come again."""
    first = (await apply(timed, change(T.OPENED, announce=True)))[FINDING.key]
    clock.advance(1)
    again = (await apply(timed, change(T.OPENED, announce=True)))[FINDING.key]
    assert (again.id, again.opened_at, again.escalated_at) == (first.id, first.opened_at, first.escalated_at)
    await apply(timed, change(T.CLOSED, episode=again))
    assert await apply(timed, change(T.CLOSED, episode=again)) == {}


async def test_what_lasts_is_seen_without_an_audit_line(timed: Database, clock: Any) -> None:
    other = replace(FINDING, subject="server-2", server_id="server-2")
    before = await apply(timed, change(T.OPENED), change(T.OPENED, other))
    clock.advance(60_000)
    after = await apply(timed, seen={FINDING.key})
    assert after[FINDING.key].last_seen_at == clock.now
    assert after[other.key] == before[other.key], "its check could not look: nobody saw it"
    assert len(await lines(timed)) == 2


@pytest.mark.parametrize("number", [2, 400])
async def test_the_number_of_statements_does_not_grow(timed: Database, number: int) -> None:
    findings = [replace(FINDING, subject=f"s{n}", server_id=f"s{n}") for n in range(number)]
    changes = [change(T.OPENED, f) for f in findings]
    moves = [change(T.ESCALATED, f, announce=True) for f in findings[: number // 2]] + [change(T.CLOSED, f) for f in findings[number // 2 :]]
    statements: list[str] = []
    event.listen(timed.engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    await apply(timed, *changes, seen={f.key for f in findings})
    await apply(timed, *moves, seen={f.key for f in findings})
    # seen, open, audit, read · seen, close, told, move, audit, read
    assert sum(not statement.startswith(("BEGIN", "SET TRANSACTION", "START TRANSACTION")) for statement in statements) == 4 + 6


async def test_listing_filters(timed: Database, clock: Any) -> None:
    other = Finding(Check.HOST_DOWN, "host:pve1", "down", level=0)
    await apply(timed, change(T.OPENED))
    clock.advance(1_000)
    rows = await apply(timed, change(T.OPENED, other))
    clock.advance(1_000)
    await apply(timed, change(T.CLOSED, episode=rows[FINDING.key]))
    async with timed.read() as tx:
        assert [e.check for e in await episodes.list_(tx)] == [Check.HOST_DOWN, Check.AGENT_OFFLINE]
        assert [e.check for e in await episodes.list_(tx, limit=1)] == [Check.HOST_DOWN]
        assert [e.check for e in await episodes.list_(tx, open_only=True)] == [Check.HOST_DOWN]
        assert [e.check for e in await episodes.list_(tx, check=Check.AGENT_OFFLINE)] == [Check.AGENT_OFFLINE]
        assert [e.check for e in await episodes.list_(tx, server_id="server-1")] == [Check.AGENT_OFFLINE]
        assert [e.check for e in await episodes.list_(tx, since=tx.now + 1)] == [Check.HOST_DOWN]
