"""Episodes: how a finding lives over time. Opened, changed, escalated, recalled, closed; one open row per finding.

Called by the sweep in one transaction with the alerts of the same transitions. Rows and audit lines are written on transitions;
a finding that is merely still there costs its share of one statement.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import bindparam, func, select, update

from flows.domain.finding import Check, EpisodeChange, EpisodeRow, Transition
from flows.state import audit
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import new_id
from flows.state.upsert import upsert

#: Who writes the sweep's own audit lines.
ACTOR = "system:controller"
#: By the index: for ``IS NOT NULL`` SQLite would look at every episode that there ever was.
_OPEN = select(t.episodes).where(t.episodes.c.open_key > "")
_CLOSE = update(t.episodes).where(t.episodes.c.open_key == bindparam("k")).values(open_key=None)
_AMONG = update(t.episodes).where(t.episodes.c.open_key.in_(bindparam("keys", expanding=True)))
_CHUNK = 10_000  # parameters of one statement: the smallest limit is SQLite's 32,766
_SEEN = ("summary", "remedy", "reason", "severity", "evidence", "last_seen_at", "server_id")


async def apply(tx: Tx, changes: Sequence[EpisodeChange], *, seen: Collection[str] | None = None) -> None:
    """Writes the transitions of a sweep, an audit line for each, and when its findings were last seen.

    ``seen`` holds the keys of all findings of the sweep; without it only changed episodes count as seen. ``announce`` on a recall sets
    ``recalled_at``, on any other but a close ``escalated_at``. Replaying the same changes is harmless. A handful of statements,
    however many changes there are. A close leaves the row its last reason, what stood in the way when it ended; its own is in the audit line.
    """
    opened = [c for c in changes if c.transition is Transition.OPENED]
    moved = [c for c in changes if c.transition in (Transition.CHANGED, Transition.ESCALATED, Transition.RECALLED)]
    closed = [c for c in changes if c.transition is Transition.CLOSED]
    if seen:
        await _mark(tx, seen, last_seen_at=tx.now)
    if closed:
        await tx.execute(_CLOSE, [{"k": c.key, "closed_at": tx.now} for c in closed])
    rows = [_opened(tx, c) for c in opened]
    await upsert(tx, t.episodes, rows, key="open_key", update=_SEEN)
    await _move(tx, moved)
    await audit.append_all(tx, (_line(c) for c in changes))


async def _mark(tx: Tx, keys: Collection[str], **values: int) -> None:
    ordered = sorted(keys)
    for begin in range(0, len(ordered), _CHUNK):
        await tx.execute(_AMONG, {"keys": ordered[begin : begin + _CHUNK], **values})


def _opened(tx: Tx, change: EpisodeChange) -> dict[str, Any]:
    finding = change.finding
    assert finding is not None, "an episode opens with its finding"
    return {
        "id": new_id(),
        "open_key": change.key,
        "check": finding.check.value,
        "subject": finding.subject,
        "server_id": finding.server_id,
        "summary": finding.summary,
        "remedy": finding.remedy,
        "reason": change.reason,
        "severity": finding.severity,
        "evidence": dict(finding.evidence),
        "opened_at": tx.now,
        "last_seen_at": tx.now,
        "escalated_at": tx.now if change.announce else None,
    }


async def _move(tx: Tx, changes: Sequence[EpisodeChange]) -> None:
    """Changed, escalated, recalled: the row takes the finding's present words."""
    e = t.episodes.c
    recalled = Transition.RECALLED
    await _mark(tx, [c.key for c in changes if c.announce and c.transition is not recalled], escalated_at=tx.now)
    await _mark(tx, [c.key for c in changes if c.announce and c.transition is recalled], recalled_at=tx.now)
    rows = [
        {
            "k": c.key,
            "b_reason": c.reason,
            "b_summary": c.finding.summary,
            "b_remedy": c.finding.remedy,
            "b_severity": c.finding.severity,
            "b_evidence": dict(c.finding.evidence),
        }
        for c in changes
        if c.finding is not None
    ]
    if rows:
        await tx.execute(
            update(t.episodes)
            .where(e.open_key == bindparam("k"))
            .values(
                reason=bindparam("b_reason"),
                summary=bindparam("b_summary"),
                remedy=bindparam("b_remedy"),
                severity=bindparam("b_severity"),
                evidence=bindparam("b_evidence", type_=e.evidence.type),
                last_seen_at=tx.now,
            ),
            rows,
        )


def _line(change: EpisodeChange) -> audit.Entry:
    server_id = change.finding.server_id if change.finding else change.episode.server_id if change.episode else None
    summary = change.finding.summary if change.finding else change.episode.summary if change.episode else ""
    detail = {"episode": change.key, "reason": change.reason, "summary": summary}
    subject = change.finding.subject if change.finding else change.key.partition("/")[2]
    return audit.Entry(ACTOR, f"episode.{change.transition.value}", subject, server_id=server_id, detail=detail)


async def open_(tx: Tx) -> dict[str, EpisodeRow]:
    """Every open episode by its key."""
    rows = await tx.execute(_OPEN)
    return {row.key: row for row in map(to_episode, rows)}


async def get(tx: Tx, episode_id: str) -> EpisodeRow | None:
    row = (await tx.execute(select(t.episodes).where(t.episodes.c.id == episode_id))).one_or_none()
    return None if row is None else to_episode(row)


async def list_(
    tx: Tx,
    *,
    open_only: bool = False,
    check: Check | None = None,
    server_id: str | None = None,
    since: int | None = None,
    limit: int | None = None,
) -> list[EpisodeRow]:
    """Newest first; ``since`` (ms) keeps those that were open at some time after it."""
    e = t.episodes.c
    query = select(t.episodes).order_by(e.opened_at.desc(), e.id.desc())
    if open_only:
        query = query.where(e.open_key.is_not(None))
    if check is not None:
        query = query.where(e.check == check.value)
    if server_id is not None:
        query = query.where(e.server_id == server_id)
    if since is not None:
        query = query.where(func.coalesce(e.closed_at, since) >= since)
    if limit is not None:
        query = query.limit(limit)
    return [to_episode(row) for row in await tx.execute(query)]


def to_episode(row: Any) -> EpisodeRow:
    """A row of the table as the domain knows it."""
    return EpisodeRow(
        id=row.id,
        check=Check(row.check),
        subject=row.subject,
        opened_at=row.opened_at,
        last_seen_at=row.last_seen_at,
        reason=row.reason,
        severity=row.severity,
        server_id=row.server_id,
        escalated_at=row.escalated_at,
        recalled_at=row.recalled_at,
        summary=row.summary,
        remedy=row.remedy,
        evidence=row.evidence,
        closed_at=row.closed_at,
    )
