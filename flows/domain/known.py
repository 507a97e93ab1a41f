"""What a source told us: ``Known(value)`` or ``Unknown(reason)``. Nothing is ever derived from Unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """A trustworthy answer."""

    value: T


@dataclass(frozen=True, slots=True)
class Unknown:
    """No trustworthy answer; ``reason`` is for people."""

    reason: str


Source = Known[T] | Unknown
