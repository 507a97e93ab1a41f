"""The tasks of playbooks under a step that is followed: read from the engine's log of the run, and left out where that cannot be read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from flows.cli import session
from flows.errors import AutomationError
from flows.state.quick import Query

if TYPE_CHECKING:
    from flows.clients.engine import Said
    from flows.settings import Settings

#: Longest wait for the engine, pause after it failed, and how late a line may come, in seconds.
TIMEOUT_S, PAUSE_S, LATE_S = 2.0, 15.0, 10.0
_RUN = "SELECT a.run_id FROM attempts a WHERE a.operation_id = :id AND a.run_id IS NOT NULL ORDER BY a.attempt DESC LIMIT 1"


class Tasks:
    """What an operation's newest run has begun, each once."""

    def __init__(self, settings: Settings, operation_id: str) -> None:
        self._settings, self._operation_id = settings.engine.model_copy(update={"timeout_s": TIMEOUT_S}), operation_id
        self._known: set[str] = set()
        self._last: str | None = None
        self._not_before = 0.0

    def begun(self) -> Sequence[str]:
        """New lines; none where the engine or the database does not answer: following goes on without them."""
        if time.monotonic() < self._not_before:
            return ()
        try:
            rows, _ = session.rows(lambda now: Query(_RUN, {"id": self._operation_id}))
            said = asyncio.run(self._ask(str(rows[0]["run_id"]))) if rows else ()
        except (AutomationError, ValueError):  # a time that is none, too
            self._not_before = time.monotonic() + PAUSE_S
            return ()
        new = [line for line in said if line.id not in self._known]
        self._known.update(line.id for line in new)
        self._last = max((line.at for line in said), default=self._last)
        return [line.text for line in new]

    async def _ask(self, run_id: str) -> Sequence[Said]:
        from flows.clients.engine import PrefectEngine

        engine = PrefectEngine(self._settings)
        try:
            after = None if self._last is None else (datetime.fromisoformat(self._last) - timedelta(seconds=LATE_S)).isoformat()
            return await engine.tasks_said(run_id, after)
        finally:
            await engine.close()
