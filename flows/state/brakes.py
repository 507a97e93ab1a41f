"""Pauses set by people: they stop all automation on a server, a host or everything, and are read before every act."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, insert, or_, select, update

from flows.domain.finding import BrakeRow, BrakeScope
from flows.state import audit
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import new_id

_B = t.brakes.c


async def pause(tx: Tx, scope: BrakeScope, target: str, reason: str, actor: str, until: int | None = None) -> BrakeRow:
    """Pauses ``target`` (a server's id, a node's name, "" for all) until a time (ms) or until resumed, and audits it.
    A second pause of the same target replaces the first."""
    await tx.execute(
        update(t.brakes).where(_B.scope == scope.value, _B.target == target, _B.lifted_at.is_(None)).values(lifted_at=tx.now, lifted_by=actor)
    )
    row = BrakeRow(new_id(), scope, target, reason[:255], actor, tx.now, until)
    await tx.execute(
        insert(t.brakes).values(id=row.id, scope=scope.value, target=target, reason=row.reason, actor=actor, created_at=tx.now, until=until)
    )
    await audit.append(tx, actor, "pause", _subject(row), server_id=_server(row), detail={"reason": reason, "until": until})
    return row


async def resume(tx: Tx, scope: BrakeScope, target: str, actor: str) -> list[BrakeRow]:
    """Lifts the pauses of exactly that target and audits it. Returns them; none: nothing was paused."""
    query = select(t.brakes).where(_B.scope == scope.value, _B.target == target, _B.lifted_at.is_(None), _lasts(tx.now))
    return await _lift(tx, [to_brake(row) for row in await tx.execute(query)], actor)


async def expire(tx: Tx) -> list[BrakeRow]:
    """Lifts the pauses whose time is over and returns them, once: their end is announced."""
    return await _lift(tx, [to_brake(row) for row in await tx.execute(_OVER, {"at": tx.now})], "system:clock")


async def active(tx: Tx) -> tuple[BrakeRow, ...]:
    """Pauses in force, oldest first."""
    return tuple(to_brake(row) for row in await tx.execute(_ACTIVE, {"at": tx.now}))


async def recall(tx: Tx, after_ms: int) -> list[BrakeRow]:
    """Pauses in force that nobody was reminded of for ``after_ms``; they count as recalled now."""
    due = [row for row in await active(tx) if tx.now - (row.recalled_at or row.created_at) >= after_ms]
    if due:
        await tx.execute(update(t.brakes).where(_B.id.in_([row.id for row in due])).values(recalled_at=tx.now))
    return due


async def _lift(tx: Tx, rows: list[BrakeRow], actor: str) -> list[BrakeRow]:
    if rows:
        await tx.execute(update(t.brakes).where(_B.id.in_([row.id for row in rows])).values(lifted_at=tx.now, lifted_by=actor))
        await audit.append_all(tx, (audit.Entry(actor, "resume", _subject(row), _server(row), detail={"paused_by": row.actor}) for row in rows))
    return rows


def _lasts(now: Any) -> Any:
    return or_(_B.until.is_(None), _B.until > now)


# Built once: each is executed in every sweep.
_OVER = select(t.brakes).where(_B.lifted_at.is_(None), ~_lasts(bindparam("at")))
_ACTIVE = select(t.brakes).where(_B.lifted_at.is_(None), _lasts(bindparam("at"))).order_by(_B.created_at, _B.id)


def _subject(row: BrakeRow) -> str:
    return row.scope.value if row.scope is BrakeScope.ALL else f"{row.scope.value}:{row.target}"


def _server(row: BrakeRow) -> str | None:
    return row.target if row.scope is BrakeScope.SERVER else None


def to_brake(row: Any) -> BrakeRow:
    """A row of the table as the domain knows it."""
    return BrakeRow(row.id, BrakeScope(row.scope), row.target, row.reason, row.actor, row.created_at, row.until, row.recalled_at)
