"""The audit log: who did what to what, and when. Append-only: this module has no update or delete, and triggers refuse both.

Called inside the transaction of the act itself, so that there is no act without its line and no line without its act.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import insert, select

from flows.state import tables as t
from flows.state.database import Tx

_APPEND = insert(t.audit)


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One line. ``at`` is the database's clock in milliseconds."""

    id: int
    at: int
    actor: str
    action: str
    subject: str
    server_id: str | None = None
    operation_id: str | None = None
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line to be written; :func:`append_all` writes many in one statement."""

    actor: str
    action: str
    subject: str
    server_id: str | None = None
    operation_id: str | None = None
    detail: Mapping[str, object] = field(default_factory=dict)


async def append(
    tx: Tx,
    actor: str,
    action: str,
    subject: str,
    *,
    server_id: str | None = None,
    operation_id: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Writes one line in the caller's transaction. ``detail`` never holds a secret."""
    await append_all(tx, [Entry(actor, action, subject, server_id, operation_id, detail or {})])


async def append_all(tx: Tx, entries: Iterable[Entry]) -> None:
    """Writes any number of lines in one statement."""
    rows = [
        {
            "at": tx.now,
            "actor": e.actor[:64],
            "action": e.action[:48],
            "subject": e.subject[:160],
            "server_id": e.server_id,
            "operation_id": e.operation_id,
            "detail": dict(e.detail),
        }
        for e in entries
    ]
    if rows:
        await tx.execute(_APPEND, rows)


async def list_(
    tx: Tx,
    *,
    server_id: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: int | None = None,
    before_id: int | None = None,
    limit: int | None = None,
) -> list[AuditLine]:
    """Newest first. ``since`` in milliseconds; ``before_id`` pages backwards."""
    query = select(t.audit).order_by(t.audit.c.id.desc())
    if server_id is not None:
        query = query.where(t.audit.c.server_id == server_id)
    if actor is not None:
        query = query.where(t.audit.c.actor == actor)
    if action is not None:
        query = query.where(t.audit.c.action == action)
    if since is not None:
        query = query.where(t.audit.c.at >= since)
    if before_id is not None:
        query = query.where(t.audit.c.id < before_id)
    if limit is not None:
        query = query.limit(limit)
    rows = (await tx.execute(query)).all()
    return [AuditLine(r.id, r.at, r.actor, r.action, r.subject, r.server_id, r.operation_id, r.detail) for r in rows]
