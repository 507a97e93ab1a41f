"""Faults on demand: one table that every part of the lab asks before and after each call."""

from __future__ import annotations

import asyncio
import fnmatch
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from aiohttp import web


class Mode(StrEnum):
    UNREACHABLE = "unreachable"  # the connection is cut without an answer, before any effect
    ERROR = "error"  # answers ``status``, no effect
    SLOW = "slow"  # waits ``seconds``, then goes on
    HOLD = "hold"  # waits until the fault is disarmed, then goes on: a call that arrives late
    HANG = "hang"  # accepts and never answers, no effect
    LOSE_ANSWER = "lose_answer"  # the effect happens, the connection is cut
    RIGHTS_LOST = "rights_lost"  # Proxmox: 200 with empty lists, no privilege on guests and storages
    PARTIAL = "partial"  # answers with a part missing
    FAIL_TASK = "fail_task"  # Proxmox: the task ends with an error; runner: the play fails
    DIE_LOCKED = "die_locked"  # Proxmox: a clone dies under ``lock: create``
    NO_QUORUM = "no_quorum"  # Proxmox: the cluster is not quorate, nothing can be changed
    EXPIRED = "token_expired"  # Proxmox: every token is refused, late and without a body


_TRANSPORT = frozenset({Mode.UNREACHABLE, Mode.ERROR, Mode.SLOW, Mode.HOLD, Mode.HANG, Mode.LOSE_ANSWER})
#: Seconds between two looks at whether a call is still held.
HELD_POLL_S = 0.02
#: What each target can play; ``agent`` stands for every agent:<vmid>. Any other mode would be armed and do nothing.
MODES: Mapping[str, frozenset[Mode]] = {
    "proxmox": frozenset(Mode),
    "agents": _TRANSPORT | {Mode.PARTIAL},
    "agent": _TRANSPORT | {Mode.PARTIAL},
    "bridge": _TRANSPORT | {Mode.PARTIAL},
    "dns": _TRANSPORT | {Mode.PARTIAL},
    "discord": _TRANSPORT,
    "artifacts": _TRANSPORT | {Mode.PARTIAL},
    "runner": _TRANSPORT - {Mode.HOLD} | {Mode.FAIL_TASK},
}


@dataclass
class Fault:
    """``target`` is one of :data:`MODES`, or agent:<vmid>; ``call`` a glob over
    ``METHOD /path`` (or playbook or record name). Ends after ``count`` hits or ``until`` (monotonic seconds), whichever comes first; one that
    holds calls stays armed after ``count`` hits, without meeting any more, until it is disarmed."""

    id: int
    target: str
    mode: Mode
    call: str = "*"
    count: int | None = None
    until: float | None = None
    status: int = 500
    seconds: float = 5.0
    message: str = "lab fault"
    hits: int = 0

    @property
    def spent(self) -> bool:
        """Whether it has met all the calls it may."""
        return self.count is not None and self.hits >= self.count


@dataclass
class Faults:
    """All faults armed now."""

    armed: dict[int, Fault] = field(default_factory=dict)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def arm(self, target: str, mode: Mode, **options: object) -> Fault:
        fault = Fault(next(self._ids), target, mode, **options)  # type: ignore[arg-type] # validated by the control API's schema
        self.armed[fault.id] = fault
        return fault

    def live(self) -> list[Fault]:
        """Those that may still be met; what has run out is forgotten."""
        now = time.monotonic()
        self.armed = {key: fault for key, fault in self.armed.items() if fault.until is None or now < fault.until}
        return list(self.armed.values())

    def clear(self, fault_id: int | None = None, target: str | None = None) -> int:
        """Disarms one, all of a target, or all; returns how many."""
        gone = [f.id for f in self.live() if fault_id in (None, f.id) and target in (None, f.target)]
        for key in gone:
            del self.armed[key]
        return len(gone)

    def hit(self, target: str, call: str, *modes: Mode) -> Fault | None:
        """The first armed fault of ``modes`` (any if empty) that matches; counts the hit."""
        for fault in self.live():
            if fault.target != target or (modes and fault.mode not in modes) or not fnmatch.fnmatch(call, fault.call):
                continue
            if fault.spent:
                continue
            fault.hits += 1
            if fault.spent and fault.mode is not Mode.HOLD:
                del self.armed[fault.id]
            return fault
        return None

    async def held(self, fault: Fault | None) -> None:
        """Waits where ``fault`` holds a call, until it is disarmed."""
        while fault is not None and fault.mode is Mode.HOLD and fault in self.live():  # noqa: ASYNC110 - faults run out by the clock, too
            await asyncio.sleep(HELD_POLL_S)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def cut(request: web.Request) -> web.StreamResponse:
    """Closes the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError


def middleware(faults: Faults, target: str) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """An aiohttp middleware that plays the transport faults of a target; the rest is up to the part itself."""

    @web.middleware
    async def play(request: web.Request, handler: Handler) -> web.StreamResponse:
        call = f"{request.method} {request.path}"
        fault = faults.hit(target, call, *_TRANSPORT)
        if fault is not None and fault.mode is Mode.HOLD:
            await request.read()  # it is kept: what has arrived takes effect, also when its sender has gone meanwhile
        await faults.held(fault)
        if fault is None or fault.mode is Mode.HOLD:
            return await handler(request)
        if fault.mode is Mode.UNREACHABLE:
            return cut(request)
        if fault.mode is Mode.HANG:
            await asyncio.sleep(3600)
        if fault.mode is Mode.ERROR:
            return web.Response(status=fault.status, reason=fault.message, text=fault.message)
        if fault.mode is Mode.SLOW:
            await asyncio.sleep(fault.seconds)
            return await handler(request)
        await handler(request)
        return cut(request)

    return play
