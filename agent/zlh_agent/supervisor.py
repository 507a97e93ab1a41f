"""The one that decides whether the game runs. Orders come from ``routes``, crashes from the unit, boots and the agent's restarts from ``__main__``.

Every start (manual, restart, autostart, crash recovery, resumption) is :meth:`Supervisor._start`, which ends at ready or at a classified failure.
One operation at a time; the same order twice is one job. What is decided is on disk before it is done (:mod:`record`), so that the next agent
carries on wherever this one was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from zlh_agent import host, record
from zlh_agent.config import NoGame, NotPrepared, Supervision
from zlh_agent.crash import TAIL_LINES, classify, report
from zlh_agent.ending import Ending
from zlh_agent.jobs import Failed, InProgress, Job, Jobs, NotAttached
from zlh_agent.ping import Pong, ping
from zlh_agent.prepared import Prepared
from zlh_agent.record import Operation, Wanted
from zlh_agent.starting import Died, Impossible, Late, Starting
from zlh_agent.tasks import Tasks
from zlh_agent.unit import Exit, Look, Unit, UnitError

#: Seconds for which the last ping and the last look at the unit speak: many who ask at once cause one.
FRESH_S = 1.0
#: Seconds until a unit that could not be asked is asked again.
AGAIN_S = 5.0
#: Times that a unit which came back by itself (something was left in its console) is ended again.
ENDINGS = 3
_log = logging.getLogger(__name__)
Run = Callable[[Job], Coroutine[Any, Any, None]]


class Supervisor:
    """``state`` is stopped, starting, running, stopping, crashed or error. ``path`` is the record's, ``boot`` tells one boot from
    the next."""

    def __init__(self, settings: Supervision, jobs: Jobs, path: Path, prepared: Prepared, boot: str = "") -> None:
        self._settings, self._jobs, self._path, self.prepared = settings, jobs, path, prepared
        self._boot = boot or host.boot()
        self._record = record.load(path)
        self.state = "stopped"
        self.live: Job | None = None
        self._attached = False
        self._tasks = Tasks()
        self._asking = asyncio.Lock()
        self._pong, self._asked_at = Pong(False, "not asked yet"), float("-inf")

    # What it says

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._record.ready_at if self.state == "running" and self._record.ready_at is not None else 0.0

    @property
    def restarts(self) -> int:
        """Starts after crashes."""
        return self._record.restarts

    @property
    def last_crash(self) -> dict[str, Any] | None:
        return self._record.last_crash

    async def look(self) -> Pong:
        """Whether the game serves now. Who started it by hand is noticed here."""
        async with self._asking:
            if time.monotonic() - self._asked_at > FRESH_S:
                await self._notice()
                if self.state == "running":
                    game = self.prepared.game
                    self._pong = await ping(game.address, game.port, self._settings.ping_timeout_s)
                self._asked_at = time.monotonic()
        if not self._attached:
            return Pong(False, "the agent does not know yet what the game does")
        return self._pong if self.state == "running" else Pong(False, f"the game is {self.state}")

    async def _notice(self) -> None:
        if self.live is None and self._attached and self.state in ("stopped", "crashed", "error") and self._prepare(quietly=True):
            with contextlib.suppress(UnitError):
                found = await self.prepared.unit.look()
                if found.active and self.live is None:
                    self._adopt()

    # Orders

    def start(self, by: str = "api") -> tuple[Job, bool]:
        """``(job, whether it has an effect)``. Raises NotPrepared, NotAttached, InProgress, and OSError where the order cannot be remembered."""
        self._prepare()
        return self._order("start", by, "running", self.state in ("running", "starting"), self._start)

    def stop(self, by: str = "api") -> tuple[Job, bool]:
        """What cannot be read now says nothing of what runs: the unit that was read before is stopped, or NotPrepared is raised."""
        try:
            self._prepare()
        except NotPrepared as error:
            ran = self._record.run and self._record.boot == self._boot
            if not self.prepared.known and (ran or not isinstance(error, NoGame)):
                raise
        return self._order("stop", by, "stopped", not self.prepared.known, self._stop)

    def restart(self, by: str = "api") -> tuple[Job, bool]:
        self._prepare()
        return self._order("restart", by, "running", False, self._restart)

    def _order(self, kind: str, by: str, wanted: Wanted, satisfied: bool, run: Run) -> tuple[Job, bool]:
        """Job and wish are on disk, both or none, before anything is done."""
        if self.live is not None:
            if self.live.kind != kind:
                raise InProgress(self.live)
            if by == "api" and self._record.wanted != wanted:  # it took up what somebody had started by hand
                self._record.wanted = wanted
                record.save(self._path, self._record)
            return self.live, False
        if not self._attached:
            raise NotAttached("the agent has just started and does not know yet what the game does")
        job, before = self._jobs.add(kind, by), copy.deepcopy(self._record)
        self._record.wanted = wanted
        self._record.operation = None if satisfied else Operation(job.id, kind, "starting" if kind == "start" else "ending")
        if by == "api":
            self._record.crashes, self._record.error = 0, self._record.error and satisfied
        if by != "crash_recovery":
            self._record.due = None
        try:
            record.save(self._path, self._record)
        except OSError as error:
            self._record = before
            self._jobs.finish(job, "failed", f"not carried out: {error.strerror}")
            raise
        if satisfied:
            self._tasks.cancel("recovery")
            self._jobs.finish(job, "succeeded")
            return job, False
        self._carry(job, run)
        return job, True

    # From one agent to the next

    async def attach(self) -> None:
        """At the agent's start: takes up what its predecessor left, or what ran before the container's boot."""
        while True:
            try:
                if await self._attach():
                    return
            except UnitError as error:
                _log.warning("the game's unit does not say what it does, asking again: %s", error)
            except OSError as error:
                self._attached = False
                _log.error("what was left cannot be taken up, trying again: %s", error)
            await asyncio.sleep(AGAIN_S)

    async def _attach(self) -> bool:
        """False: ask again."""
        try:
            self._prepare()
        except NoGame:
            self._attached = True
            if self._record.operation is not None:
                self._forget_operation("game.toml is gone")
            return True
        except NotPrepared as error:
            _log.warning("it is not known which game is here, reading again: %s", error)
            return False
        unit = self.prepared.unit
        known, found = self._record, await unit.look()
        self._attached = True
        if known.operation is not None:
            self._resume(known.operation)
        elif found.active:
            if known.run == found.run and known.ready_at is not None:
                self._running(unit, found, known.ready_at)
            else:
                self._adopt()
        elif known.wanted == "stopped":
            self.state = "stopped"
        elif known.error:
            self.state = "error"
        elif known.boot != self._boot:
            self._begin("autostart")
        elif known.due is not None:
            self.state = "crashed"
            self._recover_or_not()
        elif known.ready_at is not None:
            self._attached = False  # until it is known why, no order gets in between
            _log.warning("the game ended while no agent ran: %s", await self._crashed(unit, found))
            self._attached = True
            self._recover_or_not()
        else:
            self._begin("autostart")
        return True

    def _resume(self, operation: Operation) -> None:
        job = self._jobs.find(operation.job) or self._jobs.add(operation.kind, "resumed")
        self._jobs.resume(job)
        _log.info("%s (%s) goes on at %s", operation.kind, job.id, operation.phase)
        over = operation.phase == "starting"
        self._carry(job, self._stop if operation.kind == "stop" else self._start if over else self._restart)

    def _forget_operation(self, why: str) -> None:
        operation, self._record.operation = self._record.operation, None
        self._save()
        if operation is not None and (job := self._jobs.find(operation.job)) is not None:
            self._jobs.finish(job, "interrupted", why)

    def _adopt(self) -> None:
        """It runs and we did not start it, or did and were killed before we saw it ready. What is wanted stays as it is."""
        self._begin("adopted", self._record.wanted)

    def _begin(self, by: str, wanted: Wanted = "running") -> None:
        """A start that nobody is there to be told of."""
        try:
            self._order("start", by, wanted, False, self._start)
        except (InProgress, NotPrepared, NotAttached, OSError) as error:
            _log.error("the game is not started (%s): %s", by, error)
            self._give_up("cannot_start", f"{by}: {error}")

    async def close(self) -> None:
        """The agent goes, the game stays. What is under way is taken up by the next."""
        await self._tasks.close()

    # An operation

    def _carry(self, job: Job, run: Run) -> None:
        self._tasks.cancel("recovery")
        self._record.due = None
        self.live = job
        self._tasks.spawn("operation", self._carried(job, run))

    async def _carried(self, job: Job, run: Run) -> None:
        state, outcome = "failed", "internal_error: see the agent's journal"
        try:
            await run(job)
            state, outcome = "succeeded", ""
        except Failed as failed:
            outcome = str(failed)
            _log.warning("%s: %s", job.kind, failed)
        except UnitError as error:
            outcome = f"unknown: {error}"
            if job.by == "api" or job.kind != "start":
                self._give_up("unknown", str(error))
            else:
                self._doubt(str(error))
            _log.error("%s: %s", job.kind, error)
        except Exception:  # noqa: BLE001 - an operation must end, whatever went wrong; the journal has it all
            self._give_up("internal_error", "see the agent's journal")
            _log.exception("%s failed", job.kind)
        self.live, self._record.operation = None, None
        self._save()
        self._jobs.finish(job, state, outcome)
        self._recover_or_not()

    async def _restart(self, job: Job) -> None:
        await self._stop(job)
        await self._start(job)

    # The one path of a start

    async def _start(self, job: Job) -> None:
        """Raises Failed, UnitError."""
        game, unit = self.prepared.game, self.prepared.unit
        self._tasks.cancel("watch")
        self.state = "starting"
        self._enter(job, "starting")
        starting = Starting(unit, game, self._settings)
        oom_kills = host.oom_kills()
        try:
            found = await starting.launch(may_start=self._record.wanted == "running")  # what a person stopped is looked after, and not begun
            if self._record.run != found.run:
                self._record.run, self._record.ready_at, self._record.oom_kills = found.run, None, oom_kills
            self._record.boot = self._boot
            self._save()
            self._jobs.enter(job, "waiting")
            self._pong, self._asked_at = await starting.until_ready(found), time.monotonic()
        except Impossible as error:
            raise self._cannot(error.kind, error.why) from error
        except Died as error:
            raise Failed(await self._crashed(unit, await self._ending().settled(found.run))) from error
        except Late as late:
            tail: tuple[str, ...] = ()
            with contextlib.suppress(UnitError):
                tail = await unit.tail(found.run, TAIL_LINES)
            await self._ending().gently(asked=False)
            raise Failed(await self._crashed(unit, await unit.look(), "ready_timeout", str(late), tail)) from late
        self._jobs.enter(job, "ready")
        self._running(unit, found, self._record.ready_at or time.monotonic())

    def _running(self, unit: Unit, found: Look, ready_at: float) -> None:
        self.state = "running"
        self._record.run, self._record.boot, self._record.ready_at, self._record.error = found.run, self._boot, ready_at, False
        self._save()
        self._tasks.spawn("watch", self._watched(unit, found))

    # The one path of a stop

    async def _stop(self, job: Job) -> None:
        """Raises Failed, UnitError."""
        game, unit = self.prepared.game, self.prepared.unit
        self._tasks.cancel("watch")
        self.state = "stopping"
        for attempt in range(ENDINGS):
            found = await unit.look()
            if not found.active:
                break
            if not await (self._end(job) if attempt == 0 else self._ending().hard()):
                self._record.ready_at = None
                raise self._cannot("cannot_stop", f"{game.unit} outlives SIGKILL")
            await asyncio.sleep(min(0.2, self._settings.poll_s))
        self._jobs.enter(job, "stopped")
        self.state = "stopped"
        self._record.run, self._record.ready_at, self._record.error = "", None, False
        self._save()

    async def _end(self, job: Job) -> bool:
        operation = self._record.operation
        asked = operation is not None and operation.phase == "asked"
        self._enter(job, "asked")
        return await self._ending().gently(asked=asked)

    # Crashes

    async def _watched(self, unit: Unit, found: Look) -> None:
        while True:
            try:
                await unit.ended(found)
                self._asked_at = float("-inf")  # what it answered last is no longer true
                if self.live is None:
                    self.state = "stopping"  # other processes of it may be there yet
                unit.drain()
                now = await self._ending().settled(found.run)
                if await unit.shutting_down():
                    self.state = "stopped"  # the container goes down; what ran runs again after its boot
                    return
                if self.live is not None:
                    return
                if now.active:
                    self._adopt()
                    return
                _log.warning("the game ended by itself: %s", await self._crashed(unit, now))
            except UnitError as error:
                _log.warning("the game's unit does not say what it does, asking again: %s", error)
                await asyncio.sleep(AGAIN_S)
                continue
            if self.live is None:
                self._recover_or_not()
            return

    async def _crashed(self, unit: Unit, found: Look, kind: str = "", why: str = "", tail: tuple[str, ...] = ()) -> str:
        """Records it and decides what follows: another try, or none. Returns the record's one line."""
        known, end, up_s = self._record, found.exit or Exit(), 0.0
        if known.ready_at is not None and known.boot == self._boot:
            up_s = max(0.0, time.monotonic() - known.ready_at)
        if not tail:
            with contextlib.suppress(UnitError):
                tail = await unit.tail(known.run, TAIL_LINES)
        if not kind:
            kind, why = classify(end, tail, host.oom_kills() > known.oom_kills), str(end)
        self.state = known.crashed(report(kind, why, end, up_s, tail), self._settings, gone=not found.active)
        self._save()
        return f"{kind}: {why}"

    def _cannot(self, kind: str, why: str) -> Failed:
        self._give_up(kind, why)
        return Failed(f"{kind}: {why}")

    def _give_up(self, kind: str, why: str) -> None:
        """Trying again by ourselves would change nothing."""
        self.state, self._record.error, self._record.due = "error", True, None
        self._record.last_crash = report(kind, why, Exit(), 0.0, ()) | {"count": self._record.crashes}
        self._save()

    def _doubt(self, why: str) -> None:
        """Nobody is there to be told that the unit says nothing: it counts as a crash, so that it is tried again, and not for ever."""
        self.state = self._record.crashed(report("unknown", why, Exit(), 0.0, ()), self._settings, gone=True)
        self._save()

    def _recover_or_not(self) -> None:
        if self.state == "crashed":
            self._tasks.spawn("recovery", self._recovering())

    async def _recovering(self) -> None:
        """The pause is by the clock on the wall, so that it goes on over the agent's restart; a clock set back prolongs it by no more than itself."""
        pause_s = max(self._settings.backoff_s, default=0.0)
        if self._record.due is not None:
            pause_s = min(pause_s, max(0.0, self._record.due - time.time()))
        await asyncio.sleep(pause_s)
        self._record.restarts += 1
        self._begin("crash_recovery")

    # Small parts

    def _prepare(self, *, quietly: bool = False) -> bool:
        """Reads game.toml, unless an operation holds on to what it read. Raises NotPrepared, or says False."""
        try:
            if self.live is None:
                self.prepared.read()
        except NotPrepared:
            if not quietly:
                raise
            return False
        return True

    def _ending(self) -> Ending:
        return Ending(self.prepared.unit, self.prepared.game, self._settings)

    def _enter(self, job: Job, phase: str) -> None:
        self._jobs.enter(job, {"asked": "stopping"}.get(phase, phase))
        if self._record.operation is not None:
            self._record.operation.phase = phase
        self._save()

    def _save(self) -> None:
        """What has happened already cannot be refused any more: a full disk is said, and the next save has it again."""
        try:
            record.save(self._path, self._record)
        except OSError as error:
            _log.error("%s cannot be written: %s", self._path, error)
