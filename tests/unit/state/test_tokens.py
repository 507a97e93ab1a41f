"""API tokens: shown once, hashed at rest, over when they are over."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from sqlalchemy import select

from flows.errors import BadInput, NotFound
from flows.state import tables as t
from flows.state import tokens
from flows.state.database import Database
from flows.state.tokens import Role


async def test_a_customers_token(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        owner = await make.customer(tx)
        token_id, plaintext = await tokens.create(tx, customer_id=owner.id, role="customer", label="laptop")
        caller = await tokens.authenticate(tx, plaintext)
    assert caller == tokens.Caller(token_id, Role.CUSTOMER, owner.id, f"customer:{owner.id}")
    assert plaintext.startswith("zlh_")
    assert len(plaintext) == len("zlh_") + 43  # 32 bytes


async def test_an_admins_token_names_its_label(timed: Database) -> None:
    async with timed.write() as tx:
        _, plaintext = await tokens.create(tx, customer_id=None, role=Role.ADMIN, label="olli")
        caller = await tokens.authenticate(tx, plaintext)
    assert caller is not None
    assert (caller.actor, caller.customer_id) == ("admin:olli", None)


async def test_at_rest_there_is_only_the_hash(timed: Database) -> None:
    async with timed.write() as tx:
        _, plaintext = await tokens.create(tx, customer_id=None, role=Role.ADMIN, label="x")
        row = (await tx.execute(select(t.tokens))).one()
        shown = await tokens.list_(tx)
    assert row.hash == hashlib.sha256(plaintext.encode()).hexdigest()
    for secret in (plaintext, plaintext.removeprefix("zlh_")):
        assert secret not in str(row)
    assert row.hash not in repr(shown)


@pytest.mark.parametrize("forged", ["", "zlh_", "zlh_" + "A" * 43, "Bearer x", "zlh_" + "A" * 100_000, "zlh_ü\0"])
async def test_others_are_nobody(timed: Database, forged: str) -> None:
    async with timed.write() as tx:
        await tokens.create(tx, customer_id=None, role=Role.ADMIN, label="x")
        assert await tokens.authenticate(tx, forged) is None


async def test_expires_by_the_databases_clock(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        _, plaintext = await tokens.create(tx, customer_id=None, role=Role.ADMIN, label="x", expires_at=tx.now + 1_000)
    for ms, known in ((999, True), (1, False)):
        clock.advance(ms)
        async with timed.read() as tx:
            assert (await tokens.authenticate(tx, plaintext) is not None) == known


async def test_revoked_is_over_at_once(timed: Database) -> None:
    async with timed.write() as tx:
        token_id, plaintext = await tokens.create(tx, customer_id=None, role=Role.ADMIN, label="x")
        assert await tokens.revoke(tx, token_id)
        assert not await tokens.revoke(tx, token_id)
        assert await tokens.authenticate(tx, plaintext) is None
        assert [r.revoked_at for r in await tokens.list_(tx)] == [tx.now]
    with pytest.raises(NotFound):
        async with timed.write() as tx:
            await tokens.revoke(tx, "nope")


async def test_a_token_fits_its_role(timed: Database, make: Any) -> None:
    async with timed.write() as tx:
        owner = await make.customer(tx)
        for customer_id, role in ((None, Role.CUSTOMER), (owner.id, Role.ADMIN)):
            with pytest.raises(BadInput):
                await tokens.create(tx, customer_id=customer_id, role=role, label="x")
        with pytest.raises(NotFound):
            await tokens.create(tx, customer_id="nope", role=Role.CUSTOMER, label="x")
        assert await tokens.list_(tx, customer_id=owner.id) == []
