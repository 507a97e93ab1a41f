"""Backups that exist, and which of them were proven to restore. Written by the backup flow; read by the sweep and the digest."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, insert, select, update

from flows.domain.snapshot import BackupFact
from flows.errors import NotFound
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import new_id

_B = t.backups.c


@dataclass(frozen=True, slots=True)
class Backup:
    """``location`` names the archive, ``verified_at`` (ms) when it was proven readable; None: never."""

    id: str
    server_id: str
    type: str
    reason: str
    created_at: int
    size_bytes: int
    sha256: str
    location: str
    verified_at: int | None = None


async def add(
    tx: Tx, *, server_id: str, type_: str, reason: str, size_bytes: int, sha256: str, location: str, verified_at: int | None = None
) -> Backup:
    backup = Backup(new_id(), server_id, type_, reason, tx.now, size_bytes, sha256, location, verified_at)
    await tx.execute(
        insert(t.backups).values(
            id=backup.id,
            server_id=server_id,
            type=type_,
            reason=reason,
            created_at=tx.now,
            size_bytes=size_bytes,
            sha256=sha256,
            location=location,
            verified_at=verified_at,
        )
    )
    return backup


async def verified(tx: Tx, backup_id: str) -> None:
    """It was just proven readable. Raises NotFound."""
    done = await tx.execute(update(t.backups).where(_B.id == backup_id).values(verified_at=tx.now))
    if done.rowcount != 1:
        raise NotFound(f"backup {backup_id}", why="no such backup", remedy="zlh backups")


_VERIFIED = select(_B.server_id, func.max(_B.verified_at)).where(_B.verified_at.is_not(None)).group_by(_B.server_id)


async def latest_verified(tx: Tx) -> dict[str, BackupFact]:
    """The last verified backup of every server that has one, in one grouped query."""
    return {row[0]: BackupFact(row[0], row[1]) for row in await tx.execute(_VERIFIED)}


async def list_(tx: Tx, *, server_id: str | None = None, limit: int | None = None) -> list[Backup]:
    """Newest first."""
    query = select(t.backups).order_by(_B.created_at.desc(), _B.id.desc())
    if server_id is not None:
        query = query.where(_B.server_id == server_id)
    if limit is not None:
        query = query.limit(limit)
    return [
        Backup(r.id, r.server_id, r.type, r.reason, r.created_at, r.size_bytes, r.sha256, r.location, r.verified_at) for r in await tx.execute(query)
    ]
