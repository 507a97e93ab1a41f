"""The demo's live view: the fleet above, what happens below; plain lines where the output is no terminal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sqlalchemy import select

from flows.errors import AutomationError
from flows.state import tables as t

if TYPE_CHECKING:
    from flows.cli.demo.stage import Stage


class View:
    """``say`` appends a line; ``follow`` keeps the fleet's table fresh."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._lines: deque[str] = deque(maxlen=14)
        self._table: Table | None = None
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        stamped = f"{time.monotonic() - self._began:6.1f} s  {line}"
        self._lines.append(stamped)
        if self._live is None:
            self.console.print(stamped, markup=False, highlight=False, soft_wrap=True)
        else:
            self._draw()

    def _draw(self) -> None:
        assert self._live is not None
        parts = [self._table] if self._table is not None else []
        self._live.update(Group(*parts, Text("\n".join(self._lines))))

    async def follow(self, stage: Stage) -> None:
        """Redraws the fleet every half second while the terminal shows it."""
        if self._live is None:
            return
        while True:
            with contextlib.suppress(AutomationError):
                self._table = await self._fleet(stage)
                self._draw()
            await asyncio.sleep(0.5)

    @staticmethod
    async def _fleet(stage: Stage) -> Table:
        s, o, e = t.servers.c, t.operations.c, t.episodes.c
        servers = await stage.rows(
            select(s.name, s.vmid, s.node, s.address, s.state, o.kind, o.step, o.attempt)
            .select_from(t.servers.outerjoin(t.operations, o.live_server == s.id))
            .where(s.state != "deleted")
            .order_by(s.name)
        )
        findings = await stage.rows(select(e.check, e.subject, e.reason).where(e.closed_at.is_(None)))
        table = Table(title=f"fleet · {len(findings)} open findings", title_justify="left")
        for column in ("server", "ct", "node", "address", "state", "operation"):
            table.add_column(column)
        for row in servers:
            running = f"{row.kind} {row.step or 'queued'} (attempt {row.attempt})" if row.kind else ""
            table.add_row(row.name, str(row.vmid), row.node, row.address, row.state, running)
        return table
