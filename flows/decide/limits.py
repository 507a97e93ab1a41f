"""Which of the eligible repairs this sweep begins: 4 at once, 2 per host, one per server; repairs still under way count. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from flows.domain.finding import Action, Finding, Policy, RepairRow

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
    under_way = [r for r in repairs if r.outcome is None]
    total = len(under_way)
    hosts = Counter(r.host for r in under_way if r.host is not None)
    subjects = {r.server_id or r.subject for r in under_way}
    verdicts: dict[str, str] = {}
    for finding in sorted(eligible, key=lambda f: (place(f)[0], opened.get(f.key, _NEW), f.key)):
        subject = finding.server_id or finding.subject
        if subject in subjects:
            verdicts[finding.key] = "another repair of the same server goes first"
        elif total >= policy.concurrent_repairs:
            verdicts[finding.key] = f"{policy.concurrent_repairs} repairs at once"
        elif finding.host is not None and hosts[finding.host] >= policy.concurrent_per_host:
            verdicts[finding.key] = f"{policy.concurrent_per_host} repairs at once on host {finding.host}"
        else:
            verdicts[finding.key] = ""
            total += 1
            subjects.add(subject)
            if finding.host is not None:
                hosts[finding.host] += 1
    return verdicts


def place(finding: Finding) -> tuple[int, str]:
    """Where a repair stands in its plan."""
    assert finding.action is not None
    return ORDER[finding.action], finding.key
