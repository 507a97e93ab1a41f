"""Who may sweep: one row, taken by compare-and-set, fenced by an epoch that only ever grows.

Called by the ``reconcile`` flow: ``begin`` before anything else, ``renew`` every few seconds, ``end`` in the last act.
Every writing transaction between them is ``database.write(epoch=…)``, which locks the row and refuses a superseded epoch.
"""

from __future__ import annotations

from sqlalchemy import bindparam, case, insert, or_, select, update

from flows.errors import Conflict, Fenced
from flows.state import tables as t
from flows.state.database import Database, Tx

NAME = "reconcile"
_E = t.epochs.c
# Built once: each is executed several times in every sweep.
_AT = bindparam("at", type_=_E.epoch.type)
_TAKE = (
    update(t.epochs)
    .where(_E.name == NAME, or_(_E.holder.is_(None), _E.expires_at < _AT, 2 * _E.renewed_at - _E.expires_at > _AT))
    .values(epoch=case((_E.epoch + 1 > _AT, _E.epoch + 1), else_=_AT), holder=bindparam("who"), renewed_at=_AT, expires_at=bindparam("until"))
)
_EPOCH = select(_E.epoch).where(_E.name == NAME)
_CURRENT = select(_E.epoch, _E.holder, _E.expires_at).where(_E.name == NAME)
_OURS = update(t.epochs).where(_E.name == NAME, _E.epoch == bindparam("mine"), _E.holder == bindparam("me"))
_RENEW = _OURS.values(renewed_at=_AT, expires_at=bindparam("until"))
_END = _OURS.values(holder=None, renewed_at=_AT, expires_at=_AT)


async def begin(db: Database, holder: str, ttl_ms: int) -> int | None:
    """Takes the row if nobody holds it, or the holder's time is over. Returns the new epoch, or None: somebody else sweeps. A last renewal that
    lies ahead by more than its own expiry was written before the clock was set back: that holder's time is over, too.

    The epoch is max(previous + 1, database time in ms): a restored database cannot count backwards.
    """
    try:
        async with db.write() as tx:
            return await _take(tx, holder, ttl_ms)
    except Conflict:  # the row was missing, and another sweep created it in the same moment
        return None


async def _take(tx: Tx, holder: str, ttl_ms: int) -> int | None:
    taken = await tx.execute(_TAKE, {"at": tx.now, "who": holder, "until": tx.now + ttl_ms})
    epoch: int | None = (await tx.execute(_EPOCH)).scalar_one_or_none()
    if taken.rowcount == 1:
        return epoch
    if epoch is None:
        await tx.execute(insert(t.epochs).values(name=NAME, epoch=tx.now, holder=holder, renewed_at=tx.now, expires_at=tx.now + ttl_ms))
        return tx.now
    return None


async def renew(db: Database, epoch: int, holder: str, ttl_ms: int) -> None:
    """Pushes the expiry to ``ttl_ms`` from now. Raises Fenced if the row is somebody else's: stop before the next act."""
    async with db.write() as tx:
        done = await tx.execute(_RENEW, {"mine": epoch, "me": holder, "at": tx.now, "until": tx.now + ttl_ms})
        if done.rowcount != 1:
            raise await _fenced(tx, epoch)


async def end(db: Database, epoch: int, holder: str) -> None:
    """Gives the row back. Raises Fenced if it is somebody else's already."""
    async with db.write() as tx:
        done = await tx.execute(_END, {"mine": epoch, "me": holder, "at": tx.now})
        if done.rowcount != 1:
            raise await _fenced(tx, epoch)


async def current(tx: Tx) -> tuple[int, str | None, int] | None:
    """``(epoch, holder, expires_at)`` of the row, None before the first sweep."""
    row = (await tx.execute(_CURRENT)).one_or_none()
    return None if row is None else (row.epoch, row.holder, row.expires_at)


async def _fenced(tx: Tx, epoch: int) -> Fenced:
    row = await current(tx)
    return Fenced("sweep", why=f"epoch {epoch} was superseded by {row[0] if row else 'none'}")
