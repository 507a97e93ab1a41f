"""API tokens: 32 random bytes shown once, only their SHA-256 at rest. Called by both listeners of the API and ``zlh token``.

A fast hash is enough here: the secret is random and long, nothing about it can be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import select, update

from flows.errors import BadInput, NotFound
from flows.state import tables as t
from flows.state.database import Tx
from flows.state.ids import new_id
from flows.state.unique import insert_unique

PREFIX = "zlh_"
#: Nobody's token is longer: nothing longer is hashed.
_LONGEST = 128


class Role(StrEnum):
    CUSTOMER = "customer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling. ``actor`` is the name in every audit line."""

    token_id: str
    role: Role
    customer_id: str | None
    actor: str


@dataclass(frozen=True, slots=True)
class TokenRow:
    """What may be shown of a token. Times in ms."""

    id: str
    customer_id: str | None
    role: Role
    label: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None


async def create(tx: Tx, *, customer_id: str | None, role: Role | str, label: str, expires_at: int | None = None) -> tuple[str, str]:
    """A new token's id and plaintext; the plaintext is nowhere else. Raises BadInput (a customer's token without customer, an admin's
    with one), NotFound (no such customer)."""
    role = Role(role)
    if (role is Role.CUSTOMER) != (customer_id is not None):
        raise BadInput("customer", customer_id, why="a customer's token belongs to a customer, an admin's to none")
    plaintext = PREFIX + secrets.token_urlsafe(32)
    row = {
        "id": new_id(),
        "customer_id": customer_id,
        "role": role.value,
        "label": label[:64],
        "hash": _hash(plaintext),
        "created_at": tx.now,
        "expires_at": expires_at,
        "revoked_at": None,
    }
    if not await insert_unique(tx, t.tokens, row):
        raise NotFound(f"customer {customer_id}", remedy="zlh customers list")
    return str(row["id"]), plaintext


async def authenticate(tx: Tx, plaintext: str) -> Caller | None:
    """Whose token it is; None: unknown, expired or revoked, which a caller is not told apart. One statement."""
    if not plaintext.startswith(PREFIX) or len(plaintext) > _LONGEST:
        return None
    digest = _hash(plaintext)
    row = (await tx.execute(select(t.tokens).where(t.tokens.c.hash == digest))).one_or_none()
    if row is None or not hmac.compare_digest(row.hash, digest):
        return None
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= tx.now):
        return None
    role = Role(row.role)
    return Caller(row.id, role, row.customer_id, f"{role.value}:{row.customer_id or row.label}"[:64])


async def revoke(tx: Tx, token_id: str) -> bool:
    """Ends it at once. False: it was revoked already. Raises NotFound."""
    done = await tx.execute(update(t.tokens).where(t.tokens.c.id == token_id, t.tokens.c.revoked_at.is_(None)).values(revoked_at=tx.now))
    if done.rowcount == 1:
        return True
    if (await tx.execute(select(t.tokens.c.id).where(t.tokens.c.id == token_id))).one_or_none() is None:
        raise NotFound(f"token {token_id}", remedy="zlh token list")
    return False


async def list_(tx: Tx, *, customer_id: str | None = None) -> list[TokenRow]:
    """In the order of creation, revoked ones too; never a hash."""
    query = select(t.tokens).order_by(t.tokens.c.id)
    if customer_id is not None:
        query = query.where(t.tokens.c.customer_id == customer_id)
    return [TokenRow(r.id, r.customer_id, Role(r.role), r.label, r.created_at, r.expires_at, r.revoked_at) for r in await tx.execute(query)]


def _hash(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode()).hexdigest()
