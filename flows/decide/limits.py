"""Which of the eligible repairs this sweep begins: 4 at once, 2 per host, one per server; repairs still under way count. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from flows.domain.finding import BECOME_OPERATIONS, Action, Finding, Policy, RepairRow

#: release, deregister, unpublish, stop, start, publish, register. An operation that is given up is not resubmitted first.
ORDER: Mapping[Action, int] = {
    action: place
    for place, action in enumerate(
        (
            Action.FAIL_STUCK,
            Action.REVOKE_AND_RESUBMIT,
            Action.SUBMIT_ATTEMPT,
            Action.NEXT_ATTEMPT,
            Action.UNDO_AGAIN,
            Action.DEREGISTER_PROXY,
            Action.WITHDRAW_DNS,
            Action.SUSPEND_WORKLOAD,
            Action.RESTART_AGENT,
            Action.START_WORKLOAD,
            Action.RESTART_WORKLOAD,
            Action.PUBLISH_DNS,
            Action.REGISTER_PROXY,
            Action.REHYDRATE_PROXY,
            Action.RESTORE_BACKUP,
            Action.DESTROY_CONTAINER,
        )
    )
}

#: An episode not opened yet is younger than any other.
_NEW = 1 << 62


def select(eligible: Sequence[Finding], repairs: Sequence[RepairRow], opened: Mapping[str, int], policy: Policy) -> dict[str, str]:
    """Key of each finding → empty if its repair begins, else why it waits. ``opened``: key → when its episode opened; the oldest goes
    first among those with the same place in the order, so that none waits for ever."""
    desk = _Slots([r for r in repairs if r.outcome is None], policy)
    verdicts: dict[str, str] = {}
    for finding in sorted(eligible, key=lambda f: (place(f)[0], opened.get(f.key, _NEW), f.key)):
        verdicts[finding.key] = desk.refusal(finding)
        if not verdicts[finding.key]:
            desk.take(finding)
    return verdicts


class _Slots:
    """What is under way, and what this sweep adds. Repairs that became operations last for minutes: they have half of the slots, so that
    what is quick (a withdrawal, the next attempt of a lost run) never waits for them, and one slot is left for it whatever the limits."""

    def __init__(self, under_way: Sequence[RepairRow], policy: Policy) -> None:
        self._policy = policy
        self._lasting = Counter[str | None]()
        self._quick = Counter[str | None]()
        self._subjects: set[str] = set()
        for row in under_way:
            lasting = row.operation_id is not None
            self._count(row.host, lasting=lasting)
            if not lasting:
                self._subjects.add(row.server_id or row.subject)

    def refusal(self, finding: Finding) -> str:
        """Why it waits; empty if it need not. A server that an operation of ours holds is no matter here: that is told before."""
        if (finding.server_id or finding.subject) in self._subjects:
            return "another repair of the same server goes first"
        lasting = finding.action in BECOME_OPERATIONS
        if self._full(None, self._policy.concurrent_repairs, lasting=lasting):
            return f"{self._policy.concurrent_repairs} repairs at once"
        if finding.host is not None and self._full(finding.host, self._policy.concurrent_per_host, lasting=lasting):
            return f"{self._policy.concurrent_per_host} repairs at once on host {finding.host}"
        return ""

    def take(self, finding: Finding) -> None:
        self._subjects.add(finding.server_id or finding.subject)
        self._count(finding.host, lasting=finding.action in BECOME_OPERATIONS)

    def _full(self, host: str | None, limit: int, *, lasting: bool) -> bool:
        long, quick = self._lasting[host], self._quick[host]
        if lasting:
            return long >= max(limit // 2, 1) or long + quick >= limit
        return quick >= max(limit - long, 1)

    def _count(self, host: str | None, *, lasting: bool) -> None:
        kind = self._lasting if lasting else self._quick
        kind[None] += 1  # of the whole fleet
        if host is not None:
            kind[host] += 1


def place(finding: Finding) -> tuple[int, str]:
    """Where a repair stands in its plan."""
    assert finding.action is not None
    return ORDER[finding.action], finding.key
