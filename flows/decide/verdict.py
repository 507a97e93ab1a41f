"""Why a finding is left alone, if it is: brakes, leases, operations, confirmation, correlation, level, breaker, limits. Pure.

One reason per finding, the first that applies, in this order:

==================  =======================================================================================================
``paused``          a person's brake on everything, the host or the server
``locked``          somebody else's lease on the server or subject; a withdrawal is held back too
``operation_running``  a live operation holds the server (for findings that are not about operations)
``unconfirmed``     seen too few times, or what it would interrupt may still be running
``correlated``      one incident explains it: its host is down, or its source drifts as a whole
``level_disabled``  its level is above the one that a person allowed
``breaker_open``    too many attempts within the hour
``rate_limited``    back-off, 12 withdrawals an hour, or this sweep's limits
``awaiting_review``  a person must approve it, each time
``no_repair``       automation has none: a person is told
==================  =======================================================================================================

A finding that only reports (level 0) is not held back by a brake, a lease or an operation: nothing would be done to the server.
"""

from __future__ import annotations

from flows.decide import holds
from flows.decide.breakers import Breakers
from flows.decide.correlation import Correlation
from flows.decide.orders import own_lease
from flows.decide.reviews import Desk
from flows.domain.finding import REVIEWED, Action, Finding, Policy, Reason, Suppressed
from flows.domain.lease import Lease, LeaseKind
from flows.domain.operation import LIVE_STATES
from flows.domain.snapshot import Fleet, Snapshot


class Judge:
    """What the verdicts need, put together once per sweep."""

    def __init__(self, snapshot: Snapshot, policy: Policy, breakers: Breakers, correlation: Correlation, desk: Desk) -> None:
        self._now = snapshot.now
        self._fleet: Fleet = snapshot.fleet
        self._policy = policy
        self._breakers = breakers
        self._correlation = correlation
        self._desk = desk
        self._brakes = holds.in_force(snapshot.fleet, snapshot.now)
        self._live = {o.server_id: o for o in sorted(snapshot.fleet.operations.values(), key=lambda o: o.id) if o.state in LIVE_STATES}

    def suppression(self, finding: Finding) -> Suppressed | None:
        """None: nothing but this sweep's limits stands between the finding and its repair."""
        held = self._held_back(finding) if finding.level > 0 else None
        return held or self._unripe(finding) or self._forbidden(finding)

    def _held_back(self, finding: Finding) -> Suppressed | None:
        brake = next((b for b in self._brakes if holds.applies(b, self._fleet, finding.server_id, finding.host)), None)
        if brake is not None:
            return Suppressed(finding, Reason.PAUSED, f"by {brake.actor}: {brake.reason}" if brake.reason else f"by {brake.actor}")
        lease = self._lease(finding)
        if lease is not None and lease.kind is not LeaseKind.OPERATION:
            return Suppressed(finding, Reason.LOCKED, f"{lease.kind} by {lease.holder}")
        if finding.operation_id is not None:
            return self._own_run(finding)
        live = self._live.get(finding.server_id or "")
        if live is not None:
            return Suppressed(finding, Reason.OPERATION_RUNNING, f"{live.kind} {live.id} is {live.state}")
        if lease is not None:  # its operation is over or unknown: operation_orphaned frees it
            return Suppressed(finding, Reason.LOCKED, f"operation {lease.operation_id} by {lease.holder}")
        return None

    def _own_run(self, finding: Finding) -> Suppressed | None:
        """Another operation's lease locks a finding about this one; its own locks only what begins after its run has ended."""
        lease = self._lease(finding)
        if lease is None:
            return None
        operation = self._fleet.operations.get(finding.operation_id or "")
        own = operation is not None and own_lease(self._fleet, operation) is not None
        left_behind = lease.operation_id == finding.operation_id
        if not own and not left_behind:
            return Suppressed(finding, Reason.LOCKED, f"operation {lease.operation_id} by {lease.holder}")
        if finding.action is Action.UNDO_AGAIN and not lease.expired(self._now):
            return Suppressed(finding, Reason.OPERATION_RUNNING, "its run has not ended yet")
        return None

    def _unripe(self, finding: Finding) -> Suppressed | None:
        if not finding.confirmed:
            waits = finding.evidence.get("waits_for")
            return Suppressed(finding, Reason.UNCONFIRMED, f"waits for {waits}" if waits else "")
        incident = self._correlation.explains(finding)
        return Suppressed(finding, Reason.CORRELATED, incident) if incident else None

    def _forbidden(self, finding: Finding) -> Suppressed | None:
        if finding.level > self._fleet.max_level:
            return Suppressed(finding, Reason.LEVEL_DISABLED, f"level {finding.level} is off")
        blocked = self._breakers.blocks(finding)
        if blocked:
            return Suppressed(finding, Reason.BREAKER_OPEN, blocked)
        if finding.not_before is not None and finding.not_before > self._now:
            return Suppressed(finding, Reason.RATE_LIMITED, f"back-off, again in {-(-(finding.not_before - self._now) // 1000)} s")
        if self._breakers.exhausted_withdrawals(finding):
            return Suppressed(finding, Reason.RATE_LIMITED, f"{self._policy.withdrawals_per_hour} withdrawals within the hour")
        if finding.action in REVIEWED and self._desk.approval(finding) is None:
            return Suppressed(finding, Reason.AWAITING_REVIEW, self._desk.says(finding))
        return Suppressed(finding, Reason.NO_REPAIR) if finding.action is None else None

    def _lease(self, finding: Finding) -> Lease | None:
        """The lease that keeps newcomers away from the finding's server, or from its subject where that is no server."""
        return holds.lease_on(self._fleet, self._now, finding.server_id, finding.subject)
