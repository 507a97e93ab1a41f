"""Every threshold that deciding works with has its setting, and nothing but that setting moves it."""

from __future__ import annotations

from dataclasses import fields as parts
from typing import Any

import pytest

from flows.act.policy import policy_of
from flows.domain.finding import Policy
from flows.settings import Settings

#: Threshold → its setting. Backups have names for intervals, and one switch.
OF = {
    "confirm_sweeps": "policy.confirm_sweeps",
    "breaker_attempts": "policy.breaker_attempts",
    "breaker_window_ms": "policy.breaker_window_s",
    "bulk_per_hour": "policy.bulk_per_hour",
    "withdrawals_per_hour": "policy.withdrawals_per_hour",
    "concurrent_repairs": "policy.concurrent_repairs",
    "concurrent_per_host": "policy.concurrent_per_host",
    "max_attempts": "policy.max_attempts",
    "unsubmitted_ms": "timing.unsubmitted_s",
    "stuck_ms": "timing.stuck_s",
    "host_down_fraction": "policy.host_down_fraction",
    "host_down_min": "policy.host_down_min",
    "drift_fraction": "policy.drift_fraction",
    "drift_min": "policy.drift_min",
    "backup_interval_ms": "policy.watch_backups",
    "source_critical_sweeps": "policy.source_critical_sweeps",
    "recall_ms": "policy.recall_s",
    "review_ms": "policy.review_s",
    "cleanup_attempts": "policy.cleanup_attempts",
    "cleanup_backoff_ms": "policy.cleanup_backoff_s",
    "player_address": "proxy.player_address",
    "player_port": "proxy.player_port",
    "game_domain": "dns.zone",
    "record_ttl_s": "dns.ttl_s",
    "our_user": "proxmox.user",
}


def other(value: Any) -> Any:
    """A value that is none of the defaults."""
    if isinstance(value, bool):
        return not value
    return value / 2 if isinstance(value, float) and value < 1 else value * 2 if isinstance(value, int | float) else f"{value}.other"


@pytest.mark.parametrize("threshold", [part.name for part in parts(Policy)])
def test_a_threshold_has_its_setting(threshold: str) -> None:
    group, _, name = OF[threshold].partition(".")
    given = other(getattr(getattr(Settings(), group), name))
    before, after = policy_of(Settings()), policy_of(Settings.model_validate({group: {name: given}}))
    changed = {part.name for part in parts(Policy) if getattr(before, part.name) != getattr(after, part.name)}
    assert changed == {threshold}


def test_the_defaults_are_the_domains() -> None:
    """Deciding is tested with the domain's defaults: they must be what an installation has."""
    ours, plain = policy_of(Settings()), Policy()
    wired = {"player_address", "game_domain", "our_user", "backup_interval_ms"}
    assert {part.name for part in parts(Policy) if getattr(ours, part.name) != getattr(plain, part.name)} == wired
