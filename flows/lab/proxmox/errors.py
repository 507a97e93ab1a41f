"""How the face says no: an HTTP error whose reason phrase carries the message, or the end of a task."""

from __future__ import annotations

from collections.abc import Mapping

VERIFICATION_FAILED = "Parameter verification failed."


class PveError(Exception):
    """An answer with ``status``; the reason phrase is the first line of ``message``. ``bare``: without a body, as refusals
    from before the API's own code are (401, 59x)."""

    def __init__(self, status: int, message: str, errors: Mapping[str, str] | None = None, *, bare: bool = False, delay_s: float = 0.0) -> None:
        super().__init__(status, message)
        self.status, self.message, self.errors, self.bare, self.delay_s = status, message, errors, bare, delay_s

    @classmethod
    def parameters(cls, **errors: str) -> PveError:
        """400 naming each parameter that is wrong."""
        return cls(400, VERIFICATION_FAILED, errors)


class TaskError(Exception):
    """Ends a task; the text becomes its ``exitstatus``."""


class TaskDied(Exception):
    """The worker process is gone without a last word: nothing is cleaned up, the task's end is ``unexpected status``."""
