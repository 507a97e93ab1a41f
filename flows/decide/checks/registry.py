"""Every check, in the order in which people read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flows.decide.checks import (
    agent_offline,
    backup_missed,
    billing_suspended,
    cleanup_required,
    container_missing,
    container_orphaned,
    dns_record,
    dns_stale_record,
    duplicate_vmid,
    host_down,
    lease_abandoned,
    operation_orphaned,
    operation_unsubmitted,
    proxy_registration,
    proxy_stale_registration,
    queue_stalled,
    source_drift,
    source_unknown,
    stuck_provisioning,
    workload_error,
    workload_stopped,
)
from flows.decide.sightings import source_of
from flows.domain.finding import Check, Finding, Policy
from flows.domain.known import Unknown
from flows.domain.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A check: the sources it reads, what finds, and what says that finding nothing proves nothing."""

    sources: frozenset[str]
    find: Callable[[Snapshot, Policy], Iterable[Finding]]
    unproven: Callable[[Snapshot, Policy, str], str]

    def skipped(self, snapshot: Snapshot) -> str:
        """Why the check cannot run: its unknown sources; empty if it can."""
        answers = ((name, source_of(snapshot, name)) for name in sorted(self.sources))
        return "; ".join(f"{name} is unknown: {answer.reason}" for name, answer in answers if isinstance(answer, Unknown))


def _spec(module: object) -> CheckSpec:
    return CheckSpec(module.SOURCES, module.check, module.unproven)  # type: ignore[attr-defined] # modules, listed below, have all three


CHECKS: Mapping[Check, CheckSpec] = {
    Check.OPERATION_ORPHANED: _spec(operation_orphaned),
    Check.OPERATION_UNSUBMITTED: _spec(operation_unsubmitted),
    Check.STUCK_PROVISIONING: _spec(stuck_provisioning),
    Check.CLEANUP_REQUIRED: _spec(cleanup_required),
    Check.QUEUE_STALLED: _spec(queue_stalled),
    Check.DNS_RECORD: _spec(dns_record),
    Check.DNS_STALE_RECORD: _spec(dns_stale_record),
    Check.PROXY_REGISTRATION: _spec(proxy_registration),
    Check.PROXY_STALE_REGISTRATION: _spec(proxy_stale_registration),
    Check.BILLING_SUSPENDED: _spec(billing_suspended),
    Check.AGENT_OFFLINE: _spec(agent_offline),
    Check.WORKLOAD_STOPPED: _spec(workload_stopped),
    Check.WORKLOAD_ERROR: _spec(workload_error),
    Check.CONTAINER_MISSING: _spec(container_missing),
    Check.CONTAINER_ORPHANED: _spec(container_orphaned),
    Check.DUPLICATE_VMID: _spec(duplicate_vmid),
    Check.BACKUP_MISSED: _spec(backup_missed),
    Check.LEASE_ABANDONED: _spec(lease_abandoned),
    Check.HOST_DOWN: _spec(host_down),
    Check.SOURCE_UNKNOWN: _spec(source_unknown),
    Check.SOURCE_DRIFT: _spec(source_drift),
}
