"""A loop in virtual time, closed at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flows.simulate.loop import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()
