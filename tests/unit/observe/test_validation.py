"""What the looks derive from settings."""

from __future__ import annotations

import pytest

from flows.observe.validation import expected_of, limits_of, server_of
from flows.settings import Settings


def test_the_limits_follow_the_settings() -> None:
    limits = limits_of(Settings())
    assert (limits.stuck_ms, limits.operation_ms, limits.grace_ms) == (900_000, 3_600_000, 180_000)


def test_a_machine_with_several_addresses_is_one() -> None:
    settings = Settings.model_validate({"topology": {"hosts": ("a=10.0.0.1", "a=fd00::1", "b=10.0.0.2")}})
    assert expected_of(settings, "here").hosts == {"a": frozenset({"10.0.0.1", "fd00::1"}), "b": frozenset({"10.0.0.2"})}
    assert expected_of(Settings(), "here").hosts == {"here": frozenset()}


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("redis://:p@ss@10.0.0.5:6379/0", "10.0.0.5"),
        ("mysql+asyncmy://zlh:x@db.example/zlh", "db.example"),
        ("postgresql+asyncpg://zlh:x@[fd00::5]:5432/zlh", "fd00::5"),
        ("sqlite+aiosqlite:///var/zlh.db", ""),
    ],
)
def test_the_server_of_a_url(url: str, host: str) -> None:
    assert server_of(url) == host
