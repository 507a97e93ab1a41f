"""Long work and what became of it: the last 200, on disk, so that they outlive the agent. Written by ``supervisor``, shown by ``routes``."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zlh_agent import durable

#: Jobs that are remembered.
KEPT = 200
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """``state`` is running, succeeded, failed or interrupted; ``outcome`` says why it failed. Times in Unix seconds."""

    id: str
    kind: str
    by: str
    created_at: float
    state: str = "running"
    phase: str = ""
    finished_at: float | None = None
    outcome: str = ""

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Jobs:
    def __init__(self, path: Path) -> None:
        """What was running when the agent ended is interrupted, until ``supervisor`` resumes it. An unreadable file is put aside: it is
        history, and no reason not to run."""
        self._path = path
        self._jobs: deque[Job] = deque(maxlen=KEPT)
        try:
            known = set(Job.__slots__)  # a newer release may have written more
            self._jobs.extend(Job(**{name: value for name, value in job.items() if name in known}) for job in json.loads(path.read_text()))
        except FileNotFoundError:
            return
        except (ValueError, TypeError, AttributeError) as error:
            _log.warning("%s cannot be read and is put aside: %s", path, error)
            path.replace(path.with_suffix(".bad"))
            return
        for job in self._jobs:
            if job.state == "running":
                job.state, job.finished_at = "interrupted", time.time()

    def add(self, kind: str, by: str) -> Job:
        """Raises OSError where it cannot be written, and then there is no such job."""
        job = Job(f"job-{uuid.uuid4().hex}", kind, by, time.time())
        self._write([*self._jobs, job])
        self._jobs.append(job)
        return job

    def resume(self, job: Job) -> None:
        """It was cut short by the agent's end and goes on."""
        job.state, job.finished_at, job.outcome = "running", None, ""
        self._write_or_say(job)

    def enter(self, job: Job, phase: str) -> None:
        job.phase = phase
        self._write_or_say(job)

    def finish(self, job: Job, state: str, outcome: str = "") -> None:
        job.state, job.outcome, job.finished_at = state, outcome, time.time()
        self._write_or_say(job)

    def _write_or_say(self, job: Job) -> None:
        try:
            self._write([*self._jobs])
        except OSError as error:
            _log.error("%s is %s, and %s cannot be written: %s", job.id, job.state, self._path, error)

    def all(self) -> list[Job]:
        """The oldest first."""
        return list(self._jobs)

    def find(self, id: str) -> Job | None:
        return next((job for job in self._jobs if job.id == id), None)

    def _write(self, jobs: list[Job]) -> None:
        durable.write(self._path, json.dumps([job.as_json() for job in jobs[-KEPT:]]))


class InProgress(Exception):
    """Another operation is under way: ``job``."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job


class NotAttached(Exception):
    """The agent has just begun and does not know yet what the game does."""


class Failed(Exception):
    """An operation ended otherwise than asked; the text begins with the class."""
