"""Tasks: each mutating call starts one and returns its UPID; what went wrong is in its exit status."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from flows.lab.faults import Fault
from flows.lab.proxmox.errors import PveError, TaskDied, TaskError
from flows.lab.proxmox.rights import Identity
from flows.lab.substance import SubstanceError

log = logging.getLogger(__name__)
UPID = re.compile(r"UPID:([a-zA-Z0-9-]+):([0-9A-F]{8}):([0-9A-F]{8,9}):([0-9A-F]{8}):([^:\s]+):([^:\s]*):([^:\s]+):")
UNEXPECTED = "unexpected status"
KEPT = 5_000


@dataclass
class Task:
    """``status`` is None while it runs, then ``OK`` or the error. ``sentence`` is a fault that this task is to meet."""

    upid: str
    node: str
    kind: str
    id: str
    identity: Identity
    pid: int
    pstart: int
    started: float
    sentence: Fault | None = None
    dies: bool = False
    ended: float | None = None
    status: str | None = None
    lines: list[str] = field(default_factory=list)
    job: asyncio.Task[None] | None = None

    async def work(self, seconds: float) -> None:
        """The time that the work takes. Raises TaskError or TaskDied if a fault waits for this task."""
        if self.dies:
            await asyncio.sleep(seconds / 2)
            raise TaskDied
        await asyncio.sleep(seconds)
        if self.sentence is not None:
            raise TaskError(self.sentence.message)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def close(self, otherwise: str) -> None:
        """Ends it once; ``otherwise`` is its status if it never got one."""
        if self.ended is None:
            self.status, self.ended = self.status or otherwise, time.time()

    @property
    def running(self) -> bool:
        return self.ended is None

    def _head(self) -> dict[str, Any]:
        head: dict[str, Any] = {
            "upid": self.upid,
            "node": self.node,
            "pid": self.pid,
            "pstart": self.pstart,
            "starttime": int(self.started),
            "type": self.kind,
            "id": self.id,
            "user": self.identity.user,
        }
        if self.identity.token:
            head["tokenid"] = self.identity.token
        return head

    def entry(self) -> dict[str, Any]:
        """As task lists show it: ``status`` and ``endtime`` only after its end."""
        end = {} if self.ended is None else {"endtime": int(self.ended), "status": self.status}
        return {**self._head(), **end}

    def state(self) -> dict[str, Any]:
        """As ``/tasks/{upid}/status`` shows it."""
        if self.ended is None:
            return {**self._head(), "status": "running"}
        return {**self._head(), "status": "stopped", "exitstatus": self.status}


Body = Callable[[Task], Awaitable[None]]


class Tasks:
    """All tasks of the cluster, the newest last; old finished ones are forgotten."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._pids = itertools.count(1_000)

    def spawn(self, node: str, kind: str, id_: str, identity: Identity, body: Body, *, sentence: Fault | None = None, dies: bool = False) -> Task:
        """Starts ``body`` and returns at once."""
        pid, pstart, started = next(self._pids), int(time.monotonic() * 100) & 0xFFFFFFFF, time.time()
        upid = f"UPID:{node}:{pid:08X}:{pstart:08X}:{int(started):08X}:{kind}:{id_}:{identity.auth_id}:"
        task = Task(upid, node, kind, id_, identity, pid, pstart, started, sentence, dies)
        self._tasks[upid] = task
        task.job = asyncio.create_task(self._run(task, body), name=upid)
        task.job.add_done_callback(lambda _: task.close(UNEXPECTED))  # for one that is cancelled before its first step
        while len(self._tasks) > KEPT:
            oldest = next(iter(self._tasks.values()))
            if oldest.running:
                break
            del self._tasks[oldest.upid]
        return task

    async def _run(self, task: Task, body: Body) -> None:
        try:
            await body(task)
            task.status = "OK"
            task.say("TASK OK")
        except (TaskError, PveError, SubstanceError) as error:
            text = error.message if isinstance(error, PveError) else str(error)
            task.status = " ".join(text.split())
            task.say(f"TASK ERROR: {task.status}")
        except TaskDied:
            task.status = UNEXPECTED
        except asyncio.CancelledError:
            task.status = UNEXPECTED if task.dies else "received interrupt"
            task.say("TASK ERROR: received interrupt")
        except Exception as error:  # the worker's boundary: a defect of the lab must end as a failed task, not as one that runs forever
            log.exception("task %s", task.upid)
            task.status = f"lab defect: {error}"
            task.say(f"TASK ERROR: {task.status}")
        finally:
            task.close(UNEXPECTED)

    def find(self, node: str, upid: str) -> Task:
        """Raises PveError 400 for what is no UPID or no task of that node."""
        if not UPID.fullmatch(upid):
            raise PveError.parameters(upid="unable to parse worker upid")
        task = self._tasks.get(upid)
        if task is None or task.node != node:
            raise PveError.parameters(upid="no such task")
        return task

    def newest_first(self) -> list[Task]:
        return list(reversed(self._tasks.values()))

    def running(self, kind: str | None = None, id_: str | None = None) -> list[Task]:
        return [t for t in self._tasks.values() if t.running and kind in (None, t.kind) and id_ in (None, t.id)]

    async def stop(self) -> None:
        jobs = [t.job for t in self._tasks.values() if t.running and t.job is not None]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
