"""Correlated failures: what one incident explains is not many repairs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from flows.decide.checks import source_drift
from flows.domain.finding import Check, Finding


class Correlation:
    """The confirmed incidents of a sweep, and which single findings belong to them."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self._hosts = {f.host: f for f in findings if f.check is Check.HOST_DOWN and f.confirmed}
        self._held = source_drift.held(f for f in findings if f.check is Check.SOURCE_DRIFT)

    def explains(self, finding: Finding) -> str:
        """The incident that a finding is part of, in words; empty if there is none."""
        if finding.check in (Check.HOST_DOWN, Check.SOURCE_DRIFT):
            return ""
        incident = self._hosts.get(finding.host) if finding.host is not None else None
        if incident is None:
            incident = self._held.get(finding.check)
        return f"part of {incident.summary}" if incident is not None else ""
