"""Whose runs a migration gives up."""

from __future__ import annotations

import pytest

from flows.act.post_migration import older
from flows.domain.operation import engine_key


@pytest.mark.parametrize(
    ("key", "is_older"),
    [
        (engine_key(6, "01a200e9-36c0-7735-ae19-49918132b01f", 2), True),
        (engine_key(7, "01a200e9-36c0-7735-ae19-49918132b01f", 1), False),
        (engine_key(8, "01a200e9-36c0-7735-ae19-49918132b01f", 1), False),
        ("scheduled 5b3d2c3e-0d5a-4b69 7f8a 2026-11-22T01:48:00+00:00", False),
        ("scheduled 5:6:7", False),
        ("", False),
    ],
)
def test_older_generations_runs_alone(key: str, is_older: bool) -> None:
    assert older(key, 7) is is_older
