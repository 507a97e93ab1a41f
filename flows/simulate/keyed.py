"""Draws that depend on their key alone: removing one fault or call moves no other draw."""

from __future__ import annotations

from hashlib import blake2b


def draw(*key: object) -> float:
    """In [0, 1), by (seed, source, name, number, …)."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little") / 18446744073709551616.0


def pick(choices: list[str] | tuple[str, ...], *key: object) -> str:
    return choices[int(draw(*key) * len(choices))]


class Stream:
    """A cheap sequence of numbers in [0, 1) that begins at a key: latencies of things that happen very often."""

    __slots__ = ("_state",)

    def __init__(self, *key: object) -> None:
        self._state = int(draw(*key) * 2**48) | 1

    def next(self) -> float:
        self._state = (self._state * 25214903917 + 11) & 0xFFFFFFFFFFFF
        return (self._state >> 16) / 2**32
