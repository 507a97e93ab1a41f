"""Identifiers and tokens. Called by every store that creates rows."""

from __future__ import annotations

from uuid6 import uuid7


def new_id() -> str:
    """A UUIDv7 in its 36-character form: unique everywhere, and rows sort by their creation."""
    return str(uuid7())


def next_token(previous: int, now: int) -> int:
    """The fencing token after ``previous`` at database time ``now`` (ms).

    Never less than the clock, so that a database restored from a backup cannot hand out a token twice.
    """
    return max(previous + 1, now)
