"""``zlh dispatch``: delivers the outbox, and hands new attempts of operations to the engine. Two loops; any number of processes.

Neither loop ever ends by a failure of the database, of Discord or of the engine: it says so, backs off and tries again.
A message whose answer was lost, or whose dispatcher died in mid-send, is repeated under the same key; nothing else is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, TypeVar

import structlog

from flows.decide import message as text
from flows.domain.event import Channel
from flows.domain.ports import Delivery, Engine, Notifier
from flows.errors import AmbiguousEffect, AutomationError, DeadlineExceeded, Fenced, Temporary, Unreachable
from flows.settings import Settings
from flows.state import attempts, control, outbox
from flows.state.attempts import Submission
from flows.state.database import Database
from flows.state.outbox import DeadNotice, Message

log = structlog.get_logger(__name__)

#: Messages claimed at once, and attempts submitted at once.
BATCH, SUBMISSIONS = 50, 8
#: Longest pauses, in seconds: between two tries of a message, before the next message of a channel that failed, and of a failing loop.
LONGEST_RETRY_S, LONGEST_HOLD_S, LONGEST_PAUSE_S = 300.0, 30.0, 5.0
#: Characters of a batch of audit lines, so that header and footer fit beside them.
_BATCH_ROOM = text.LIMIT - 300
#: Seconds beyond a client's own time-out after which we stop waiting for it.
_GRACE_S = 1.0


async def run(database: Database, notifier: Notifier, engine: Engine, settings: Settings, stop: asyncio.Event) -> None:
    """Runs until ``stop`` is set. What is under way is finished then; what was claimed and not begun is given back."""
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    post = Dispatcher(database, notifier, settings, owner, stopping=stop.is_set)
    submit = Submitter(database, engine, settings, owner)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_every(settings.notify.drain_s, post.drain, stop, "outbox"), name="outbox")
        tasks.create_task(_every(settings.timing.submit_s, submit.submit, stop, "submitter"), name="submitter")


async def _every(seconds: float, work: Callable[[], Awaitable[int]], stop: asyncio.Event, name: str) -> None:
    """Calls ``work`` again and again; at once while it finds something to do, with growing pauses while it fails."""
    failures = 0
    while not stop.is_set():
        try:
            done = await work()
            failures = 0
        except AutomationError as error:
            failures += 1
            done = 0
            log.warning("will try again", loop=name, error=str(error), failures=failures)
        except Exception:  # a process boundary: a bug in one message must not silence all alerts
            failures += 1
            done = 0
            log.exception("unexpected", loop=name, failures=failures)
        pause = 0.0 if done else min(seconds * 2 ** min(failures, 10), max(LONGEST_PAUSE_S, seconds))
        try:
            await asyncio.wait_for(stop.wait(), max(pause, 0.001))
        except TimeoutError:
            continue


@dataclass
class Dispatcher:
    """Delivers what is due. ``clock`` is monotonic seconds, for this process's own claims and holds."""

    database: Database
    notifier: Notifier
    settings: Settings
    owner: str
    clock: Callable[[], float] = time.monotonic
    stopping: Callable[[], bool] = lambda: False
    _holds: dict[Channel, float] = field(default_factory=dict)

    async def drain(self) -> int:
        """One look: folds bursts, claims a batch, sends it. Returns how many messages got through. Raises only for the database."""
        notify = self.settings.notify
        now = self.clock()
        self._holds = {channel: until for channel, until in self._holds.items() if until > now}
        async with self.database.write() as tx:
            await outbox.fold(
                tx, over=notify.fold_over, line=text.line, room=_BATCH_ROOM, burst_ms=int(notify.burst_s * 1000), named=notify.fold_named
            )
            claimed = await outbox.claim(tx, self.owner, tx.now + int(notify.claim_s * 1000), BATCH, without=self._holds)
            untold = _Untold(await outbox.dead_notice(tx) if claimed else None)
        channels = [list(group) for _, group in groupby(sorted(claimed, key=lambda m: m.channel.value), key=lambda m: m.channel)]
        ends = now + notify.claim_s
        return sum(await _all(self._channel(messages, untold, ends) for messages in channels))

    async def _channel(self, messages: Sequence[Message], untold: _Untold, ends: float) -> int:
        """One channel's messages, in their order. Where the channel itself does not work, the rest waits with the first."""
        through = 0
        for number, message in enumerate(messages):
            # A send that could outlive the claim would be somebody else's by the time it arrives.
            late = self.clock() + 2 * (self.settings.notify.timeout_s + _GRACE_S) > ends
            if number and (late or self.stopping()):
                await self._give_back(messages[number:], 0.0)
                break
            result = await self._one(message, untold)
            through += result.through
            if result.hold_s is not None:
                self._holds[message.channel] = self.clock() + result.hold_s
                await self._give_back(messages[number + 1 :], result.hold_s)
                break
        return through

    async def _one(self, message: Message, untold: _Untold) -> _Result:
        """Sends one message to its channel and by mail, whichever is missing, and records what became of it."""
        notice = None if message.posted else untold.take()
        posted = Delivery(True) if message.posted else await self._post(message, notice)
        mailed = Delivery(True) if message.mailed else await self._mail(message)
        if not posted.delivered:
            untold.give_back(notice)
        reported = notice.ids if notice is not None and posted.delivered else ()
        if posted.delivered and (mailed is None or mailed.delivered):
            async with self.database.write() as tx:
                await outbox.sent(tx, message.id, mailed=mailed is not None, reported=reported)
            return _Result(through=True)
        bad = mailed if posted.delivered and mailed is not None else posted
        wait = self._wait(message, bad)
        async with self.database.write() as tx:
            dead = await outbox.failed(
                tx,
                message,
                self.owner,
                retry_at=tx.now + int(wait * 1000),
                give_up_ms=int(self.settings.notify.give_up_s * 1000),
                error=_why(bad),
                in_doubt=posted.ambiguous or (mailed is not None and mailed.ambiguous),
                posted=posted.delivered and not message.posted,
                mailed=mailed is not None and mailed.delivered and not message.mailed,
            )
            await outbox.told(tx, message.id, reported)
        log.error("gave up" if dead else "not delivered", channel=message.channel.value, key=message.key, why=_why(bad), tries=message.tries)
        # A refused message, or a failing mail server, says nothing about the channel's next message.
        hold = None if posted.delivered or posted.permanent else posted.retry_after_s or min(wait, LONGEST_HOLD_S)
        return _Result(through=posted.delivered, hold_s=hold)

    async def _post(self, message: Message, notice: DeadNotice | None) -> Delivery:
        async def sending() -> Delivery:
            body = text.render(message.event, limit=self._room(message), notice=_told(notice))
            return await self.notifier.send(message.channel.value, body, ping=message.ping, key=message.key)

        return await _bounded(sending(), self.settings.notify.timeout_s)

    async def _mail(self, message: Message) -> Delivery | None:
        async def sending() -> Delivery | None:
            subject = text.clip(" ".join(text.clean(message.event.what or message.event.kind.value).split()), 150)
            return await self.notifier.mail(message.severity.value, subject, text.render(message.event), key=message.key)

        return await _bounded(sending(), self.settings.notify.timeout_s)

    def _room(self, message: Message) -> int:
        """Characters left beside what the notifier adds: the footer with the key, and the people that a ping names."""
        people = 25 * len(self.settings.notify.ping_users) if message.ping else 0
        return max(text.LIMIT - text.size(message.key) - 8 - people, text.LIMIT // 2)

    def _wait(self, message: Message, delivery: Delivery) -> float:
        """Seconds until the next try: what the peer asked for, and never less than our own growing pause."""
        grown = min(self.settings.notify.drain_s * 2.0 ** min(message.tries, 20), LONGEST_RETRY_S)
        if delivery.permanent:  # only a person's correction can help; a later try finds it
            grown = max(grown, 60.0)
        return max(delivery.retry_after_s or 0.0, grown)

    async def _give_back(self, messages: Sequence[Message], wait: float) -> None:
        if messages:
            async with self.database.write() as tx:
                await outbox.release(tx, messages, self.owner, tx.now + int(wait * 1000))


@dataclass(frozen=True, slots=True)
class _Result:
    """``hold_s``: the channel itself does not work now; its other messages wait so many seconds."""

    through: bool
    hold_s: float | None = None


@dataclass
class _Untold:
    """The notice of dead messages, for the first message that gets through on any channel: who is about to post takes it, who fails gives
    it back."""

    notice: DeadNotice | None

    def take(self) -> DeadNotice | None:
        notice, self.notice = self.notice, None
        return notice

    def give_back(self, notice: DeadNotice | None) -> None:
        self.notice = notice or self.notice


_D = TypeVar("_D")


async def _all(work: Iterable[Coroutine[Any, Any, _D]]) -> list[_D]:
    """All of it to its end, whatever becomes of the rest: nothing may be left running, nor cut off in mid-send. Then the first error."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def _bounded(sending: Coroutine[Any, Any, _D], timeout_s: float) -> _D | Delivery:
    """The notifier's answer. None in time, or an unexpected failure, is ambiguous: it may have arrived."""
    try:
        async with asyncio.timeout(timeout_s + _GRACE_S):
            return await sending
    except TimeoutError:
        return Delivery(False, ambiguous=True, reason=f"no answer within {timeout_s:g} s")
    except (Unreachable, AmbiguousEffect, DeadlineExceeded) as error:
        return Delivery(False, ambiguous=True, reason=str(error))
    except Temporary as error:
        return Delivery(False, retry_after_s=error.retry_after, reason=str(error))
    except AutomationError as error:
        return Delivery(False, permanent=True, reason=str(error))
    except Exception as error:  # a message's boundary: one that breaks the sender must not hold back all others
        log.exception("unexpected")
        return Delivery(False, ambiguous=True, permanent=True, reason=f"unexpected {type(error).__name__}")


def _why(delivery: Delivery) -> str:
    status = f"status {delivery.status}" if delivery.status is not None else ""
    return " ".join(part for part in (status, delivery.reason) if part) or "no reason given"


def _told(notice: DeadNotice | None) -> str:
    if notice is None:
        return ""
    oldest = datetime.fromtimestamp(notice.oldest_at / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    number = len(notice.ids)
    lost = ", ".join(f"{channel.value} {count}" for channel, count in sorted(notice.channels.items()))
    return f"{number} earlier {'message' if number == 1 else 'messages'} never got through ({lost}), the oldest of {oldest}: see zlh status"


@dataclass
class Submitter:
    """Hands unclaimed attempts to the engine, each under its own key."""

    database: Database
    engine: Engine
    settings: Settings
    owner: str

    async def submit(self) -> int:
        """One look. Returns how many attempts the engine took. Raises for the database, and the engine's refusal where it took none."""
        until_ms = int((self.settings.engine.timeout_s + 5.0) * 1000)
        async with self.database.write() as tx:
            claimed = await attempts.claim_for_submission(tx, self.owner, tx.now + until_ms, SUBMISSIONS)
            generation = await control.generation(tx) if claimed else 0
        results = await asyncio.gather(*(self._one(submission, generation) for submission in claimed), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        taken = sum(result is True for result in results)
        if errors and (not taken or not isinstance(errors[0], AutomationError)):
            raise errors[0]
        return taken

    async def _one(self, submission: Submission, generation: int) -> bool:
        """True: the engine has it. False: nobody knows; after a while it is submitted again, under the same key. Raises what refused it."""
        operation_id, attempt = submission.operation_id, submission.attempt
        deployment, key, parameters, queue = submission.asked(generation)
        try:
            async with asyncio.timeout(self.settings.engine.timeout_s + _GRACE_S):
                run_id = await self.engine.submit(deployment, key, parameters, queue)
        except (Unreachable, AmbiguousEffect, DeadlineExceeded, TimeoutError) as error:
            log.warning("no answer from the engine", key=key, error=str(error))
            return False
        except AutomationError as error:
            log.error("the engine refused", key=key, error=str(error))
            await self._unsubmit(operation_id, attempt)
            raise
        async with self.database.write() as tx:
            await attempts.submitted(tx, operation_id, attempt, run_id)
        log.info("submitted", key=key, run=run_id)
        return True

    async def _unsubmit(self, operation_id: str, attempt: int) -> None:
        try:
            async with self.database.write() as tx:
                await attempts.unsubmit(tx, operation_id, attempt)
        except Fenced:  # a run owns it already, whatever the engine said
            log.info("claimed meanwhile", operation=operation_id, attempt=attempt)
