"""Leases: exclusive by the database's clock, tokens only grow, and the state machine agrees with a model of ten lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from flows.domain.lease import Lease, LeaseKind
from flows.errors import Busy, Conflict, Fenced
from flows.state import leases
from flows.state.database import Database

K = LeaseKind
TTL = 60_000


async def take(db: Database, kind: LeaseKind, holder: str, subject: str = "s", operation: str | None = None, ttl: int = TTL) -> Lease:
    async with db.write() as tx:
        return await leases.take(tx, subject, kind, holder, ttl, operation_id=operation)


@pytest.mark.parametrize("first", list(K))
@pytest.mark.parametrize("second", list(K))
async def test_kinds_exclude_each_other_and_the_holder_is_named(timed: Database, first: LeaseKind, second: LeaseKind) -> None:
    await take(timed, first, "host1:17")
    with pytest.raises(Busy, match="host1:17") as busy:
        await take(timed, second, "host2:18")
    assert busy.value.retry_after == 60


async def test_subjects_do_not_exclude_each_other(timed: Database) -> None:
    await take(timed, K.REPAIR, "a", "one")
    await take(timed, K.REPAIR, "a", "two")


@pytest.mark.parametrize("kind", [K.REPAIR, K.BACKUP, K.MAINTENANCE])
async def test_expired_is_free_for_kinds_that_free_themselves(timed: Database, clock: Any, kind: LeaseKind) -> None:
    old = await take(timed, kind, "a")
    clock.advance(TTL - 1)
    with pytest.raises(Busy):
        await take(timed, K.BACKUP, "b")
    clock.advance(1)
    new = await take(timed, K.BACKUP, "b")
    assert new.token > old.token
    async with timed.write() as tx:
        with pytest.raises(Fenced):
            await leases.check(tx, "s", old.token)
        await leases.check(tx, "s", new.token)


@pytest.mark.parametrize("kind", list(K))
async def test_a_clock_that_is_set_back_ends_what_a_heartbeat_keeps(timed: Database, clock: Any, kind: LeaseKind) -> None:
    """By more than an expiry, and what a person took for hours stays theirs. Whoever lives and renews has it again."""
    old = await take(timed, kind, "a", operation="op")
    clock.advance(-TTL)
    assert not old.expired(clock.now)
    clock.advance(-1)
    assert old.expired(clock.now) == (kind in (K.OPERATION, K.REPAIR, K.BACKUP))
    if kind not in (K.REPAIR, K.BACKUP):
        with pytest.raises(Busy):
            await take(timed, K.BACKUP, "b")
        return
    async with timed.write() as tx:
        assert not (await leases.renew(tx, "s", old.token, TTL)).expired(tx.now)
    with pytest.raises(Busy):
        await take(timed, K.BACKUP, "b")
    clock.advance(-TTL - 1)
    assert (await take(timed, K.BACKUP, "b")).token > old.token


async def test_an_expired_operation_lease_is_an_orphan_that_only_revoking_frees(timed: Database, clock: Any) -> None:
    old = await take(timed, K.OPERATION, "a", operation="op")
    clock.advance(10 * TTL)
    for kind in K:
        with pytest.raises(Busy, match="sweep"):
            await take(timed, kind, "a", operation="op")
    async with timed.write() as tx:
        token = await leases.revoke(tx, "s")
    assert token > old.token
    with pytest.raises(Fenced):
        async with timed.write() as tx:
            await leases.renew(tx, "s", old.token, TTL)
    assert (await take(timed, K.OPERATION, "b", operation="op")).token > token


@pytest.mark.parametrize("kind", [K.PATCH, K.RESTORE])
async def test_an_expired_patch_or_restore_is_taken_over_by_its_own_resumption_alone(timed: Database, clock: Any, kind: LeaseKind) -> None:
    old = await take(timed, kind, "a", operation="op")
    with pytest.raises(Busy):
        await take(timed, kind, "a", operation="op")  # not while it lives
    clock.advance(TTL)
    for other, operation in [(kind, "else"), (kind, None), (K.OPERATION, "op"), (K.REPAIR, None)]:
        with pytest.raises(Busy, match="resumption"):
            await take(timed, other, "a", operation=operation)
    assert (await take(timed, kind, "b", operation="op")).token > old.token


async def test_a_patch_without_operation_is_resumed_by_its_holder(timed: Database, clock: Any) -> None:
    await take(timed, K.PATCH, "wave-7")
    clock.advance(TTL)
    with pytest.raises(Busy):
        await take(timed, K.PATCH, "wave-8")
    await take(timed, K.PATCH, "wave-7")


async def test_renewing_keeps_the_token_and_moves_the_end(timed: Database, clock: Any) -> None:
    lease = await take(timed, K.REPAIR, "a")
    clock.advance(TTL - 1)
    async with timed.write() as tx:
        renewed = await leases.renew(tx, "s", lease.token, TTL)
    assert (renewed.token, renewed.expires_at, renewed.heartbeat_at) == (lease.token, clock.now + TTL, clock.now)


async def test_a_holder_who_slept_keeps_what_nobody_took(timed: Database, clock: Any) -> None:
    lease = await take(timed, K.OPERATION, "a", operation="op")
    clock.advance(5 * TTL)
    async with timed.write() as tx:
        assert not (await leases.renew(tx, "s", lease.token, TTL)).expired(tx.now)


async def test_released_is_free_and_its_token_is_no_good_any_more(timed: Database) -> None:
    lease = await take(timed, K.REPAIR, "a")
    async with timed.write() as tx:
        await leases.release(tx, "s", lease.token)
    for act in (leases.check, leases.release):
        with pytest.raises(Fenced):
            async with timed.write() as tx:
                await act(tx, "s", lease.token)
    assert (await take(timed, K.BACKUP, "b")).token > lease.token


async def test_a_look_at_a_lease_needs_no_lock(timed: Database) -> None:
    """A server refuses a lock where a transaction only reads."""
    async with timed.write() as tx:
        lease = await leases.take(tx, "s", LeaseKind.REPAIR, "a", 1000)
    async with timed.read() as tx:
        assert await leases.held(tx, "s", lease.token) == lease
        with pytest.raises(Fenced):
            await leases.held(tx, "s", lease.token - 1)
    async with timed.write() as tx:
        await leases.release(tx, "s", lease.token)
    async with timed.read() as tx:
        with pytest.raises(Fenced):
            await leases.held(tx, "s", lease.token)


async def test_tokens_follow_the_clock_so_that_a_restored_database_cannot_count_backwards(timed: Database, clock: Any) -> None:
    first = await take(timed, K.REPAIR, "a")
    assert first.token == clock.now
    async with timed.write() as tx:
        assert await leases.revoke(tx, "s") == first.token + 1  # same millisecond: still greater
    clock.advance(5_000)
    assert (await take(timed, K.REPAIR, "a")).token == clock.now


async def test_a_clock_that_steps_back_does_not_lower_tokens(timed: Database, clock: Any) -> None:
    first = await take(timed, K.REPAIR, "a")
    clock.advance(-3_600_000)
    async with timed.write() as tx:
        assert await leases.revoke(tx, "s") == first.token + 1


async def test_revoking_what_was_seen_spares_what_was_renewed(timed: Database, clock: Any) -> None:
    seen = await take(timed, K.OPERATION, "a", operation="op")
    clock.advance(TTL)
    async with timed.write() as tx:
        await leases.renew(tx, "s", seen.token, TTL)
    with pytest.raises(Conflict, match="renewed"):
        async with timed.write() as tx:
            await leases.revoke(tx, "s", seen=seen)
    async with timed.write() as tx:
        await leases.check(tx, "s", seen.token)


async def test_revoking_a_subject_without_lease_leaves_a_token(timed: Database, clock: Any) -> None:
    async with timed.write() as tx:
        assert await leases.revoke(tx, "never") == clock.now
        assert await leases.list_(tx) == []
        assert [x.subject for x in await leases.list_(tx, held=False)] == ["never"]


SUBJECTS = st.sampled_from(["s1", "s2"])
OPERATIONS = st.sampled_from([None, "op1", "op2"])


class LeaseMachine(RuleBasedStateMachine):
    """Any order of calls and any passing of time, against a model in memory."""

    def __init__(self, url: str, clock: Any) -> None:
        super().__init__()
        self.clock = clock
        self.runner = asyncio.Runner()
        self.db = Database(url, clock=clock)
        self.held: dict[str, Lease] = {}  # who holds what, expired or not
        self.highest: dict[str, int] = {}
        self.tokens: list[tuple[str, int]] = []  # every token ever given to anybody

    def teardown(self) -> None:
        self.runner.run(self.db.close())
        self.runner.close()

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        async def run() -> Any:
            async with self.db.write() as tx:
                return await function(tx, *arguments, **named)

        return self.runner.run(run())

    def granted(self, subject: str, token: int) -> None:
        assert token > self.highest.get(subject, 0), "a token must only ever grow"
        self.highest[subject] = token
        self.tokens.append((subject, token))

    @rule(ms=st.sampled_from([0, 1, 500, 999, 1_000, 5_000]))
    def time_passes(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule(subject=SUBJECTS, kind=st.sampled_from(K), holder=st.sampled_from(["a", "b"]), operation=OPERATIONS)
    def take(self, subject: str, kind: LeaseKind, holder: str, operation: str | None) -> None:
        old = self.held.get(subject)
        over = old is not None and old.expires_at <= self.clock.now
        resumes = (
            old is not None
            and over
            and old.kind is kind
            and kind in (K.PATCH, K.RESTORE)
            and (old.operation_id == operation if old.operation_id else old.holder == holder)
        )
        free = old is None or resumes or (over and old.kind in (K.REPAIR, K.BACKUP, K.MAINTENANCE))
        try:
            lease = self.call(leases.take, subject, kind, holder, 1_000, operation_id=operation)
        except Busy:
            assert not free
        else:
            assert free
            self.granted(subject, lease.token)
            self.held[subject] = lease

    @rule(data=st.data(), what=st.sampled_from(["renew", "release", "check"]))
    def use_a_token(self, data: st.DataObject, what: str) -> None:
        if not self.tokens:
            return
        subject, token = data.draw(st.sampled_from(self.tokens))
        own = subject in self.held and self.held[subject].token == token
        try:
            if what == "renew":
                renewed = self.call(leases.renew, subject, token, 1_000)
                assert renewed.expires_at == self.clock.now + 1_000
                self.held[subject] = renewed
            elif what == "release":
                self.call(leases.release, subject, token)
                del self.held[subject]
            else:
                self.call(leases.check, subject, token)
        except Fenced:
            assert not own
        else:
            assert own

    @rule(subject=SUBJECTS)
    def revoke(self, subject: str) -> None:
        self.granted(subject, self.call(leases.revoke, subject))
        self.held.pop(subject, None)

    @invariant()
    def the_database_agrees(self) -> None:
        assert {x.subject: x for x in self.call(leases.list_)} == self.held


def test_leases_agree_with_their_model(fresh: Callable[[], str], clock: Any) -> None:
    run_state_machine_as_test(
        lambda: LeaseMachine(fresh(), clock),
        settings=settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)),
    )


async def test_a_look_locks_nothing(timed: Database) -> None:
    """On no database: MariaDB and PostgreSQL refuse it, and what SQLite let pass would fail there alone."""
    held = await take(timed, K.REPAIR, "a")
    with pytest.raises(AssertionError, match="only reads"):
        async with timed.read() as tx:
            await leases.check(tx, "s", held.token)
    async with timed.read() as tx:
        assert (await leases.held(tx, "s", held.token)).holder == "a"
