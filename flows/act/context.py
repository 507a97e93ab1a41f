"""What a step of an operation may use: the operation, its server, its lease, and the outside world behind that lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from flows.act import ownership
from flows.act.deps import Deps
from flows.act.guarded import GuardedProxmox
from flows.act.heartbeat import Heartbeat
from flows.act.tasks import longest_call_s, seen_through
from flows.domain.operation import Direction, Operation, OperationState, StepName, StepRow
from flows.domain.ports import Play, PlayResult
from flows.domain.server import Server
from flows.domain.sources import ContainerConfig, TaskStatus
from flows.errors import AmbiguousEffect, Busy, Conflict, Fenced, NotFound, TaskFailed, Temporary, Unproven, Unreachable
from flows.state import journal, leases, operations, servers
from flows.state.database import Tx

T = TypeVar("T")


@dataclass
class Context:
    """Of one run of one operation. ``server`` is read again where a step changes it. ``row`` is the journal's line of the present step,
    ``again`` whether what it sends may have been sent before: by an earlier run or, where the step says so, in this one.
    ``unsettled_until``: monotonic time until which an order to Proxmox whose answer was lost may still be on its way, so that nothing found
    proves nothing."""

    deps: Deps
    operation: Operation
    server: Server
    token: int
    heartbeat: Heartbeat
    say: Callable[[str], None]
    row: StepRow | None = None
    suspended: bool = False
    again: bool = False
    unsettled_until: float = 0.0

    @property
    def proxmox(self) -> GuardedProxmox:
        return GuardedProxmox(self.deps.proxmox, lambda: self.heartbeat.room_for(self.deps.settings.timing.call_s))

    async def check(self, tx: Tx) -> None:
        """Refuses (Fenced) when this run no longer holds the server, or is of an older generation."""
        await self.heartbeat.check_generation(tx)
        await leases.check(tx, self.server.id, self.token)

    async def write(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """One transaction under the lease, tried until it is through: a database that is gone for a moment is no failure of a step. How
        long that may last is the heartbeat's to judge, which ends the whole run. The answer to a commit may be lost, so ``work`` must bear
        being carried out twice. Raises Fenced."""
        while True:
            try:
                async with self.deps.database.write() as tx:
                    await self.check(tx)
                    return await work(tx)
            except Temporary as error:
                self.say(f"not written: {error}; trying again")
                await self.pause(min(1.0, self.deps.settings.timing.heartbeat_s / 4))

    async def refresh(self) -> None:
        """Reads operation and server again; Fenced if either is another's now."""

        async def read(tx: Tx) -> tuple[Operation | None, Server | None]:
            return await operations.get(tx, self.operation.id), await servers.get(tx, self.server.id)

        operation, server = await self.write(read)
        if operation is None or server is None or operation.attempt != self.operation.attempt:
            raise Fenced("operation", why="a newer attempt exists")
        self.operation, self.server = operation, server

    async def sent(self, call: Awaitable[T]) -> T:
        """A write to any peer: a cancellation waits for its end, so that nothing is undone before it has happened."""
        return await seen_through(call, longest_call_s(self.deps.settings))

    async def task(self, order: Awaitable[str | None]) -> TaskStatus | None:
        """Gives an order to Proxmox, stores its task's id, and waits for its end. Raises TaskFailed, DeadlineExceeded, Unproven, and what
        the order raises. Cancelled, it still stores the id of what was sent."""
        upid = await self.sent(self._noted(order))
        if upid is None:
            return None
        assert self.row is not None
        await self.deps.boundary(f"{self.row.step}:{self.row.direction}:task")
        return await self.deps.proxmox.wait(upid, self.deps.settings.timing.operation_s)

    async def _noted(self, order: Awaitable[str | None]) -> str | None:
        row = self.row
        assert row is not None
        try:
            upid = await order
        except AmbiguousEffect:
            self.unsettled_until = time.monotonic() + longest_call_s(self.deps.settings)
            raise
        if upid is not None:
            await self.write(lambda tx: journal.set_upid(tx, self.operation.id, row.step, row.direction, upid))
            self.row = replace(row, upid=upid)
        return upid

    async def own(self) -> ContainerConfig:
        """The container's configuration as it is now. Asked before every order that changes a container: a VMID alone does not say whose
        it is. Raises Conflict for a container without our marks, NotFound."""
        config = await self.deps.proxmox.config(self.server.node, self.server.vmid)
        if not ownership.ours(config, self.server, self.operation.id):
            raise Conflict(
                f"container {self.server.vmid}",
                why="it carries none of our marks: it is left alone",
                remedy=f"look at it: pct config {self.server.vmid}",
            )
        return config

    async def settle(self) -> None:
        """Waits for the task that an interrupted run of this step left behind, however it ends: what it was about tells. Raises Temporary
        while it may still run."""
        if self.row is None or self.row.upid is None:
            return
        try:
            await self.deps.proxmox.wait(self.row.upid, self.deps.settings.timing.operation_s)
        except (TaskFailed, NotFound) as error:
            self.say(f"the task of an earlier attempt ended: {error.why or error}")
        except (Busy, Unproven) as error:  # Busy: it met a lock and ended without effect, for good
            if not await self._over(self.row.upid):
                raise
            self.say(f"the task of an earlier attempt ended: {error.why}")

    async def _over(self, upid: str) -> bool:
        """Whether a task has ended, nobody knows how. One that its node knows no more (its log rotated, the node installed anew) is over
        when nothing runs for the container, nor this task for the template."""
        try:
            return (await self.deps.proxmox.task(upid)).finished
        except Unproven:
            if await self.deps.proxmox.tasks_of(self.server.vmid):
                return False
            return upid not in {task.upid for task in await self.deps.proxmox.tasks_of(self.server.template_vmid)}

    async def play(self, playbook: str, variables: dict[str, object], secrets: dict[str, str] | None = None) -> PlayResult:
        """Runs a playbook on the container. Raises TaskFailed with the tail, Unreachable, DeadlineExceeded."""
        result = await self.deps.runner.run(
            Play(playbook, self.server, variables, secrets or {}, self.deps.settings.ansible.timeout_s), on_event=self.say
        )
        if result.unreachable:
            raise Unreachable(f"{playbook} on {self.server.name}", why=result.tail or "the container did not answer over SSH")
        if not result.ok:
            raise TaskFailed(f"{playbook} on {self.server.name}", why=f"task {result.failed_task!r}: {result.tail}".strip())
        return result

    @property
    def undoing(self) -> bool:
        return self.operation.state in (OperationState.COMPENSATING, OperationState.CANCELLING)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def boundary_name(step: StepName, direction: Direction, point: str) -> str:
    """Name of a journaled boundary, as kill tests know it: ``create_container:do:begun``."""
    return f"{step.value}:{direction.value}:{point}"
