"""Settings as the frozen thresholds that deciding works with."""

from __future__ import annotations

from flows.domain.finding import Policy
from flows.settings import Settings


def policy_of(settings: Settings) -> Policy:
    """Seconds become milliseconds. A test proves that every threshold of the policy has its setting."""
    timing, policy = settings.timing, settings.policy
    return Policy(
        confirm_sweeps=policy.confirm_sweeps,
        breaker_attempts=policy.breaker_attempts,
        breaker_window_ms=int(policy.breaker_window_s * 1000),
        concurrent_repairs=policy.concurrent_repairs,
        concurrent_per_host=policy.concurrent_per_host,
        max_attempts=policy.max_attempts,
        unsubmitted_ms=int(timing.unsubmitted_s * 1000),
        stuck_ms=int(timing.stuck_s * 1000),
        source_critical_sweeps=policy.source_critical_sweeps,
        review_ms=int(policy.review_s * 1000),
        recall_ms=int(policy.recall_s * 1000),
        cleanup_attempts=policy.cleanup_attempts,
        cleanup_backoff_ms=int(policy.cleanup_backoff_s * 1000),
        bulk_per_hour=policy.bulk_per_hour,
        withdrawals_per_hour=policy.withdrawals_per_hour,
        host_down_fraction=policy.host_down_fraction,
        host_down_min=policy.host_down_min,
        drift_fraction=policy.drift_fraction,
        drift_min=policy.drift_min,
        player_address=settings.proxy.player_address,
        player_port=settings.proxy.player_port,
        game_domain=settings.dns.zone,
        record_ttl_s=settings.dns.ttl_s,
        backup_interval_ms=Policy().backup_interval_ms if policy.watch_backups else {},
        our_user=f"{settings.proxmox.user}!{settings.proxmox.token_name}",
    )
