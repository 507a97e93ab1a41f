"""An event loop whose time jumps, and processes that die or stand still at any ``await``.

A simulated process is a context variable: before the loop runs a handle it looks whose it is. A dead process's handles go to a graveyard,
where references keep their ``finally`` from ever running; a standing one's are held back. No file descriptors, no threads, ties in the order
of their making: the same calls give the same run. A loop with nothing left to do raises :class:`Deadlock`.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("simulated process")
#: Handles, tasks and futures of the dead. Never emptied: collecting them would run their ``finally``.
GRAVEYARD: list[object] = []
_COMPACT = 512


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is left: the simulated program waits for itself."""


class Process:
    """One simulated process. ``host`` names the machine on which it runs. ``steps`` counts the handles that it ran."""

    __slots__ = (
        "armed", "context", "countdown", "dead", "held", "holder", "host", "kind", "matches", "name", "on_death", "paused", "paused_s", "pauses",
        "point_name", "resumed", "started", "steps", "tasks", "told", "waits_for",
    )  # fmt: skip

    def __init__(self, name: str, host: str, kind: str, started: float) -> None:
        self.name, self.host, self.kind, self.started = name, host, kind, started
        self.dead = self.paused = False
        self.steps = self.countdown = self.pauses = 0
        self.paused_s = 0.0
        self.resumed = started  # when it went on last
        self.held: list[asyncio.Handle] = []
        self.tasks: set[object] = set()
        self.armed: Callable[[Process], None] | None = None
        self.waits_for = ""  # the boundary at which what is armed strikes
        self.matches = 0  # which time it comes there, from now on
        self.on_death: list[Callable[[], None]] = []
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        self.point_name = ""
        self.holder = ""  # how it calls itself in leases and epochs
        self.told: dict[str, Any] = {}  # what invariants remember of it

    def __repr__(self) -> str:
        return self.name

    def arm(self, strike: Callable[[Process], None], where: str | int) -> None:
        """``strike`` is called at the k-th step from now, or at the first boundary whose name begins with ``where``: at the n-th that does,
        where it ends in ``#n``."""
        self.armed = strike
        if isinstance(where, int):
            self.countdown, self.waits_for, self.matches = where, "", 0
        else:
            name, _, number = where.partition("#")
            self.countdown, self.waits_for, self.matches = 0, name, int(number or 1)

    def strike(self) -> None:
        armed, self.armed, self.countdown, self.waits_for = self.armed, None, 0, ""
        if armed is not None:
            armed(self)

    def at(self, name: str) -> bool:
        """It has come to a named boundary. True: something struck."""
        self.point_name = name
        if self.waits_for and name.startswith(self.waits_for):
            self.matches -= 1
            if self.matches <= 0:
                self.strike()
                return True
        return False


class SimulatedTask(asyncio.Task[Any]):
    """Hashes by number, so that sets of tasks have the same order in every run; a process keeps its tasks alive."""

    def __init__(self, coro: Any, *, loop: VirtualLoop, name: str | None = None, context: contextvars.Context | None = None) -> None:
        self._number = loop.number()
        process = (context or contextvars.copy_context()).get(PROCESS)
        super().__init__(coro, loop=loop, name=name or f"task {self._number}", context=context)
        self._log_destroy_pending = False
        if process is not None:
            process.tasks.add(self)
            self.add_done_callback(process.tasks.discard)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """``connect`` answers whoever opens a network connection by the loop itself (address, port): it raises or waits."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count(1)
        self._gone = 0
        self.outside = contextvars.Context()
        self.handles = 0
        self.failure: BaseException | None = None
        self.connect: Callable[[str, int], Awaitable[None]] | None = None
        self.set_task_factory(_task)  # type: ignore[arg-type]  # the stubs' protocol names its arguments otherwise
        self.set_exception_handler(self._fatal)

    # Time

    def time(self) -> float:
        return self._now

    def number(self) -> int:
        return next(self._numbers)

    def call_at(  # type: ignore[override]  # the stubs type the arguments by the callback's
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]  # asyncio's own loops set it so
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._gone += 1
        if self._gone > _COMPACT and self._gone * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._gone = 0

    def nap(self, seconds: float) -> asyncio.Future[None]:
        """Done after so many virtual seconds. Cheaper than ``asyncio.sleep``, and nobody's own: it passes while its process stands still."""
        future: asyncio.Future[None] = self.create_future()
        self.call_at(self._now + seconds, _wake, future, context=self.outside)
        return future

    def after(self, seconds: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """A call of the world's, which no process's death stops."""
        return self.call_at(self._now + seconds, callback, *args, context=self.outside)

    # Running

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]  # asyncio's base keeps it here
        if not ready:
            self._jump(ready)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None:
                if process.countdown:
                    process.countdown -= 1
                    if not process.countdown:
                        process.strike()
                if process.dead:
                    GRAVEYARD.append(handle)
                    continue
                if process.paused:
                    process.held.append(handle)
                    continue
                process.steps += 1
            self.handles += 1
            handle._run()
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure

    def _jump(self, ready: Any) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers:
            if self._stopping:  # type: ignore[attr-defined]  # asyncio's base keeps it here
                return
            raise Deadlock(f"nothing is left to do at {self._now:.3f} s")
        when = timers[0][0]
        self._now = max(self._now, when)
        while timers and timers[0][0] <= when:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                ready.append(handle)

    def _fatal(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody awaits is an error of the driver, or of the product: it ends the simulation."""
        self.failure = context.get("exception") or RuntimeError(context.get("message", "unknown"))

    # Processes

    def spawn(self, process: Process, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self.create_task(work, context=process.context)

    def kill(self, process: Process) -> None:
        """SIGKILL: nothing of it runs again, no ``finally`` either."""
        if process.dead:
            return
        process.dead, process.paused = True, False
        GRAVEYARD.append(process)
        GRAVEYARD.extend(process.held)
        process.held = []
        for callback in process.on_death:
            callback()

    def stand(self, process: Process, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so many seconds."""
        if process.dead or process.paused:
            return
        process.paused = True
        process.pauses += 1
        self.after(seconds, self._go_on, process, seconds)

    def _go_on(self, process: Process, seconds: float) -> None:
        if process.dead:
            return
        process.paused = False
        process.paused_s += seconds
        process.resumed = self._now
        self._ready.extend(process.held)  # type: ignore[attr-defined]  # asyncio's base keeps it here
        process.held = []

    # What asyncio's base leaves open

    def _process_events(self, event_list: object) -> None:
        raise NotImplementedError

    def _write_to_self(self) -> None:
        """Called by other threads, of which there are none."""

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        """A look whether anybody is there (``asyncio.open_connection``): nothing is ever sent."""
        assert self.connect is not None
        await self.connect(str(host), int(port))
        raise ConnectionRefusedError(host)


def _task(loop: VirtualLoop, coro: Any, context: contextvars.Context | None = None) -> SimulatedTask:
    return SimulatedTask(coro, loop=loop, context=context)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Bare:
    """One turn of the loop, in no time."""

    def __await__(self) -> Generator[None, None, None]:
        yield


BARE = Bare()


def here() -> Process | None:
    """The process whose code runs."""
    return PROCESS.get(None)
