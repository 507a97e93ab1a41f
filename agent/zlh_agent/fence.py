"""The highest number that was ever seen, on disk: who was fenced off stays so, also after the agent's restart. Asked by ``routes``.

Read at every order: ``zlh agents unfence`` removes the file, and the running agent knows.
"""

from __future__ import annotations

from pathlib import Path

from zlh_agent import durable

#: Lease tokens and epochs fit a database's signed 64 bits.
LARGEST = 2**63 - 1


class Stale(Exception):
    """The number is lower than ``highest``: its bearer is no longer in charge."""

    def __init__(self, name: str, number: int, highest: int) -> None:
        super().__init__(f"{name} {number} is older than {highest}")
        self.highest = highest


class Unreadable(Exception):
    """The file says nothing; guessing could let a fenced controller in again."""


class Fence:
    """``name`` is for people: "lease token", "epoch"."""

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path

    @property
    def highest(self) -> int:
        """0 where none was ever seen. Raises Unreadable."""
        try:
            text = self._path.read_text().strip()
        except FileNotFoundError:
            return 0
        except (OSError, UnicodeDecodeError) as error:
            raise Unreadable(f"{self._path}: {error}") from error
        if not text.isascii() or not text.isdigit() or len(text) > 19:
            raise Unreadable(f"{self._path} does not hold a {self._name}: `zlh agents unfence` removes it")
        return int(text)

    def check(self, number: int) -> None:
        """Raises Stale, Unreadable."""
        highest = self.highest
        if number < highest:
            raise Stale(self._name, number, highest)

    def admit(self, number: int) -> None:
        """On disk before it returns. Raises Stale and Unreadable; OSError where it cannot be written, and then the order must not be carried out."""
        self.check(number)
        if number > self.highest:
            durable.write(self._path, f"{number}\n")
