"""Tasks: status, log, and waiting for the end. proxmoxer's own ``blocking_status`` never looks at the exit status, so this does.
Used by :mod:`client`.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import quote

from flows.clients.http import fit
from flows.clients.proxmox import answers
from flows.clients.proxmox.answers import succeeded
from flows.clients.proxmox.errors import ALREADY_RUNNING, LOCKED, NO_QUORUM, NOT_RUNNING
from flows.clients.proxmox.session import Session
from flows.domain.sources import TaskStatus
from flows.errors import AutomationError, BadAnswer, Busy, DeadlineExceeded, TaskFailed, Temporary, Unproven

#: Lines of a failed task's log that go into the error, and pages read to find them.
TAIL_LINES = 12
LOG_PAGE = 500
LOG_PAGES = 20
#: Seconds for which a fresh UPID may be unknown.
UNKNOWN_S = 15.0
UNEXPECTED = "unexpected status"


class Tasks:
    def __init__(self, session: Session, poll_s: float) -> None:
        self._session, self._poll_s = session, poll_s

    async def status(self, upid: str, *, once: bool = False) -> TaskStatus:
        """Raises Unproven for a task that the node does not know (yet, or any more)."""
        what = f"task {upid}"
        parsed = answers.upid(upid, what)
        get = self._session.get_once if once else self._session.get
        data = answers.row(await get(what, f"nodes/{parsed.node}/tasks/{quote(upid, safe='')}/status"), what)
        state = data.get("status")
        if state == "running":
            return TaskStatus(upid, finished=False, ok=False)
        if state != "stopped":
            raise BadAnswer(what, why=f"its status is {fit(state)[:40]!r}")
        exitstatus = fit(data.get("exitstatus") or UNEXPECTED)
        return TaskStatus(upid, finished=True, ok=succeeded(exitstatus), exitstatus=exitstatus)

    async def tail(self, upid: str) -> str:
        """The last lines of its log, one per line; empty where the log cannot be had."""
        what = f"log of task {upid}"
        lines: list[str] = []
        try:
            node = answers.upid(upid, what).node
            for page in range(LOG_PAGES):
                path = f"nodes/{node}/tasks/{quote(upid, safe='')}/log"
                part = answers.rows(await self._session.get(what, path, start=page * LOG_PAGE, limit=LOG_PAGE), what)
                lines = (lines + [fit(line.get("t", "")) for line in part])[-TAIL_LINES:]
                if len(part) < LOG_PAGE:
                    break
        except AutomationError:
            return "\n".join(lines)  # the task's failure is what matters, not its log's
        return "\n".join(line for line in lines if line)

    async def wait(self, upid: str, deadline_s: float) -> TaskStatus:
        """See :meth:`flows.domain.ports.ProxmoxWriter.wait`; a lock or a lost quorum as exit status is Busy.

        A task that ended because the container was already running or stopped counts as well ended.
        """
        what = f"Proxmox: task {upid}"
        began = time.monotonic()
        trouble: Temporary | None = None
        while True:
            try:
                status = await self.status(upid, once=True)
                trouble = None
            except Unproven as error:
                if time.monotonic() - began > UNKNOWN_S:
                    raise
                status, trouble = None, error
            except Temporary as error:  # the node may come back; the task goes on without us
                status, trouble = None, error
            if status is not None and status.finished:
                return await self._end(what, status)
            left = deadline_s - (time.monotonic() - began)
            if left <= 0:
                if isinstance(trouble, Unproven):
                    raise trouble
                why = f"still running after {deadline_s:.0f} s" if trouble is None else f"no word for the rest of {deadline_s:.0f} s: {trouble.why}"
                raise DeadlineExceeded(what, why=why, remedy="the task goes on: look at the object before acting again")
            await asyncio.sleep(min(self._poll_s, left))

    async def _end(self, what: str, status: TaskStatus) -> TaskStatus:
        kind, exitstatus = answers.upid(status.upid, what).kind, status.exitstatus
        if status.ok:
            return status
        if exitstatus.startswith(UNEXPECTED):
            raise Unproven(what, why="it ended with an unexpected status: nobody knows how", remedy="look at the object before acting again")
        if (kind == "vzstart" and ALREADY_RUNNING.search(exitstatus)) or (kind in ("vzstop", "vzshutdown") and NOT_RUNNING.search(exitstatus)):
            return TaskStatus(status.upid, finished=True, ok=True, exitstatus=exitstatus)
        if LOCKED.search(exitstatus) or NO_QUORUM.search(exitstatus):
            raise Busy(what, why=exitstatus, remedy="wait for what holds the lock; `pct config` shows it")
        tail = await self.tail(status.upid)
        raise TaskFailed(what, why=exitstatus if tail in ("", exitstatus) else f"{exitstatus}; log: {tail}")
