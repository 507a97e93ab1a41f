"""Whatever answers come, whoever dies and however time passes: no alert is lost, and one repeats only where an answer was lost."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

import sqlalchemy.event
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from sqlalchemy import select

from flows.domain.event import Channel, Event, EventKind, Route, Severity
from flows.domain.ports import Delivery
from flows.errors import Unreachable
from flows.report.dispatch import Dispatcher
from flows.settings import Settings
from flows.state import outbox
from flows.state import tables as t
from flows.state.database import Database
from tests.unit.report.support import Clock, Killed, create_schema

PAGE = Route(Channel.CRITICAL, True, Severity.CRITICAL)
AUDIT = Route(Channel.AUDIT, False, Severity.INFO)
ANSWERS = ("ok", "refused", "permanent", "slow down", "lost before", "lost after", "unreachable", "killed before", "killed after")


class Discord:
    """Does what the next answer says; counts what arrived and which answers were lost, by key."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.arrived: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()

    async def send(self, channel: str, text: str, *, ping: bool, key: str) -> Delivery:
        answer = self.answers.pop(0) if self.answers else "ok"
        if answer == "ok" or answer.endswith("after"):
            self.arrived[key] += 1
        if answer.startswith(("lost", "killed")) or answer == "unreachable":
            self.lost[key] += 1
        if answer.startswith("killed"):
            raise Killed
        if answer == "unreachable":
            raise Unreachable("discord")
        return {
            "ok": Delivery(True, 204),
            "refused": Delivery(False, 500),
            "permanent": Delivery(False, 400, permanent=True),
            "slow down": Delivery(False, 429, retry_after_s=3.0),
        }.get(answer, Delivery(False, ambiguous=True))

    async def mail(self, severity: str, subject: str, text: str, *, key: str) -> Delivery | None:
        return None


class OutboxModel(RuleBasedStateMachine):
    @initialize()
    def begin_world(self) -> None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
        self.loop = asyncio.new_event_loop()
        self.dir = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.database = Database(f"sqlite+aiosqlite:///{Path(self.dir.name) / 'zlh.db'}", clock=self.clock)
        sqlalchemy.event.listen(self.database.engine.sync_engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))  # only faster
        self.loop.run_until_complete(create_schema(self.database))
        self.discord = Discord()
        self.settings = Settings.model_validate({"notify": {"fold_over": 1}})
        self.born = 0
        self.put_keys: list[str] = []
        self.dispatchers = {name: self._dispatcher(name) for name in "ab"}

    def _dispatcher(self, name: str) -> Dispatcher:
        self.born += 1
        return Dispatcher(self.database, self.discord, self.settings, f"{name}{self.born}", clock=lambda: self.clock.now / 1000)

    @rule(number=st.integers(1, 3), route=st.sampled_from([PAGE, AUDIT]))
    def put(self, number: int, route: Route) -> None:
        async def work() -> None:
            async with self.database.write() as tx:
                for _ in range(number):
                    key = f"k{len(self.put_keys)}"
                    self.put_keys.append(key)
                    await outbox.put(tx, Event(EventKind.HOST_DOWN, key, what=key), route)

        self.loop.run_until_complete(work())

    @rule(ms=st.sampled_from([500, 4_000, 4_000, 31_000]))
    def pass_time(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule(who=st.sampled_from("ab"), answers=st.lists(st.sampled_from(ANSWERS), max_size=3))
    def drain_with(self, who: str, answers: list[str]) -> None:
        self.drain(who, answers)

    def drain(self, who: str, answers: list[str]) -> None:
        self.discord.answers = answers
        try:
            self.loop.run_until_complete(self.dispatchers[who].drain())
        except Killed:
            self.dispatchers[who] = self._dispatcher(who)  # a new process: it remembers nothing
        self.discord.answers = []

    @rule(who=st.sampled_from("ab"))
    def lose_an_answer(self, who: str) -> None:
        self.drain(who, ["lost after"])

    @rule()
    def both_at_once(self) -> None:
        async def work() -> None:
            await asyncio.gather(*(d.drain() for d in self.dispatchers.values()))

        self.loop.run_until_complete(work())

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.loop.run_until_complete(self._settle())
        finally:
            self.loop.run_until_complete(self.database.close())
            self.loop.close()
            self.dir.cleanup()
            structlog.reset_defaults()

    async def _settle(self) -> None:
        """Faults are over: everything must arrive."""
        for _ in range(40):
            self.clock.advance(310_000)
            for dispatcher in self.dispatchers.values():
                await dispatcher.drain()
            async with self.database.read() as tx:
                if not (await outbox.stats(tx)).waiting:
                    break
        async with self.database.read() as tx:
            rows = {row.id: row for row in (await tx.execute(select(t.outbox))).all()}
        by_key = {row.key: row for row in rows.values()}
        assert set(self.put_keys) <= set(by_key)
        for key in self.put_keys:
            row = by_key[key]
            if row.state == outbox.FOLDED:  # then it never went out by itself, and what tells of it did
                assert not self.discord.arrived[key]
                row = rows[row.folded_into]
            assert row.state == outbox.SENT
            assert self.discord.arrived[row.key] >= 1, f"{key} is lost"
        for key, times in self.discord.arrived.items():
            assert times <= 1 + self.discord.lost[key], f"{key} repeats without a lost answer"


TestOutboxModel = OutboxModel.TestCase
TestOutboxModel.settings = settings(max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
