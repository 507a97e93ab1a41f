"""Leases: one row per subject, taken by compare-and-set, fenced by a token that only ever grows. All by the database's clock.

Called by runs of operations, repairs and backups, and by ``zlh lease hold``. A lease that ended keeps its row: the token must not begin again.
A row is locked by :func:`check` until the caller's commit, so that nobody revokes between a check and the change that it allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import bindparam, select, update

from flows.domain.lease import BLOCKS_WHEN_EXPIRED, Lease, LeaseKind
from flows.errors import Busy, Conflict, Fenced
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import next_token
from flows.state.unique import insert_unique

_L = t.leases.c
_OF = select(t.leases).where(_L.subject == bindparam("of"))
_LOCKED = _OF.with_for_update()
_ALL = select(t.leases).order_by(_L.subject)
_HELD = _ALL.where(_L.holder.is_not(None))
_OURS = update(t.leases).where(_L.subject == bindparam("of"), _L.token == bindparam("under"), _L.holder.is_not(None))
_FREE: dict[str, Any] = {"kind": None, "holder": None, "operation_id": None, "reason": "", "expires_at": 0}


async def take(tx: Tx, subject: str, kind: LeaseKind, holder: str, ttl_ms: int, *, operation_id: str | None = None, reason: str = "") -> Lease:
    """Takes a free subject, or one whose lease expired and is of a kind that frees itself; ``ttl_ms`` from now.

    An expired ``patch`` or ``restore`` lease is taken over by its own resumption alone: the same kind, and the same operation or
    holder. An expired ``operation`` lease is an orphan that only :func:`revoke` frees. Raises Busy, naming who is in the way.
    """
    wanted = Lease(subject, next_token(0, tx.now), kind, holder[:128], operation_id, reason[:255], tx.now, tx.now, tx.now + ttl_ms)
    current = await get(tx, subject)
    if current is None:
        if await insert_unique(tx, t.leases, {"subject": subject} | _values(wanted)):
            return wanted
        raise await _busy(tx, subject)
    if current.blocks(tx.now) and not _resumes(current, wanted, tx.now):
        raise _taken(current, tx.now)
    wanted = replace(wanted, token=next_token(current.token, tx.now))
    guard = [t.leases.c.subject == subject, t.leases.c.token == current.token]
    if current.holder is None:
        guard.append(t.leases.c.holder.is_(None))
    else:
        guard.append(t.leases.c.expires_at == current.expires_at)  # a renewal keeps the token: it must still be what is over
    if (await tx.execute(update(t.leases).where(*guard).values(**_values(wanted)))).rowcount == 1:
        return wanted
    raise await _busy(tx, subject)


async def renew(tx: Tx, subject: str, token: int, ttl_ms: int) -> Lease:
    """Pushes the expiry to ``ttl_ms`` from now. One that expired is still its holder's as long as nobody took it. Raises Fenced."""
    done = await tx.execute(_OURS, {"of": subject, "under": token, "heartbeat_at": tx.now, "expires_at": tx.now + ttl_ms})
    lease = await get(tx, subject)
    if done.rowcount != 1 or lease is None:
        raise _fenced(subject, token, lease)
    return lease


async def check(tx: Tx, subject: str, token: int) -> Lease:
    """The caller's own lease, whose row stays locked until the transaction ends. Raises Fenced if it is not the caller's any more."""
    row = (await tx.execute(_LOCKED, {"of": subject})).one_or_none()
    lease = None if row is None else to_lease(row)
    if lease is None or lease.token != token or lease.holder is None:
        raise _fenced(subject, token, lease)
    return lease


async def held(tx: Tx, subject: str, token: int) -> Lease:
    """As :func:`check`, without the lock: for a transaction that only reads, in which a server refuses to lock. Raises Fenced."""
    lease = await get(tx, subject)
    if lease is None or lease.token != token or lease.holder is None:
        raise _fenced(subject, token, lease)
    return lease


async def release(tx: Tx, subject: str, token: int) -> None:
    """Gives it back; the token stays, for the next one to be greater. Raises Fenced."""
    done = await tx.execute(_OURS, {"of": subject, "under": token} | _FREE)
    if done.rowcount != 1:
        raise _fenced(subject, token, await get(tx, subject))


async def revoke(tx: Tx, subject: str, *, seen: Lease | None = None) -> int:
    """Takes it from whoever holds it: holder null, token raised; returns the new token. Whoever held it is fenced.

    With ``seen`` only that very lease is revoked, in the state in which it was seen: raises Conflict (``changed``) if it was renewed or
    taken since. A subject that never had a lease gets a row, so that a claim under way meets the token.
    """
    for _ in range(10):
        current = await get(tx, subject)
        if current is None:
            token = next_token(0, tx.now)
            row = {"subject": subject, "token": token, "taken_at": 0, "heartbeat_at": 0} | _FREE
            if await insert_unique(tx, t.leases, row):
                return token
            continue
        if seen is not None and (current.token, current.expires_at) != (seen.token, seen.expires_at):
            raise Conflict(f"lease of {subject}", why="it was renewed or taken meanwhile", kind="changed")
        token = next_token(current.token, tx.now)
        guard = [t.leases.c.subject == subject, t.leases.c.token == current.token]
        if seen is not None:
            guard.append(t.leases.c.expires_at == seen.expires_at)
        if (await tx.execute(update(t.leases).where(*guard).values(token=token, **_FREE))).rowcount == 1:
            return token
    raise Busy(f"lease of {subject}", why="it changes hands faster than it can be revoked")


async def get(tx: Tx, subject: str) -> Lease | None:
    """The row as it is, held or not, expired or not; None if the subject never had a lease."""
    row = (await tx.execute(_OF, {"of": subject})).one_or_none()
    return None if row is None else to_lease(row)


async def list_(tx: Tx, *, held: bool = True, subjects: Sequence[str] | None = None) -> list[Lease]:
    """By subject. ``held``: only those that somebody holds, expired ones too."""
    query = _HELD if held else _ALL
    if subjects is not None:
        query = query.where(t.leases.c.subject.in_(subjects))
    return [to_lease(r) for r in await tx.execute(query)]


def to_lease(row: Any) -> Lease:
    """A row of the table as the domain knows it."""
    return Lease(
        row.subject,
        row.token,
        None if row.kind is None else LeaseKind(row.kind),
        row.holder,
        row.operation_id,
        row.reason,
        row.taken_at,
        row.heartbeat_at,
        row.expires_at,
    )


def _values(lease: Lease) -> dict[str, Any]:
    return {
        "token": lease.token,
        "kind": None if lease.kind is None else lease.kind.value,
        "holder": lease.holder,
        "operation_id": lease.operation_id,
        "reason": lease.reason,
        "taken_at": lease.taken_at,
        "heartbeat_at": lease.heartbeat_at,
        "expires_at": lease.expires_at,
    }


def _resumes(current: Lease, wanted: Lease, now: int) -> bool:
    if not current.expired(now) or current.kind not in BLOCKS_WHEN_EXPIRED or current.kind is not wanted.kind:
        return False
    if current.operation_id is not None:
        return current.operation_id == wanted.operation_id
    return current.holder == wanted.holder


async def _busy(tx: Tx, subject: str) -> Busy:
    current = await get(tx, subject)
    return Busy(f"lease of {subject}", why="somebody else took it in the same moment") if current is None else _taken(current, tx.now)


def _taken(current: Lease, now: int) -> Busy:
    why = f"{current.holder} holds it: {current.kind}" + (f" {current.operation_id}" if current.operation_id else "")
    if current.reason:
        why += f" ({current.reason})"
    if not current.expired(now):
        return Busy(f"lease of {current.subject}", why=why, remedy="wait for it", retry_after=max(0.0, (current.expires_at - now) / 1000))
    remedy = "its own resumption alone may take it" if current.kind in BLOCKS_WHEN_EXPIRED else "the next sweep frees it"
    return Busy(f"lease of {current.subject}", why=f"{why}, expired", remedy=remedy)


def _fenced(subject: str, token: int, current: Lease | None) -> Fenced:
    if current is None:
        why = "there is no such lease"
    elif current.token == token:
        why = f"token {token} was given back"
    else:
        why = f"token {token} was superseded by {current.token}" + (f" of {current.holder}" if current.holder else "")
    return Fenced(f"lease of {subject}", why=why)
