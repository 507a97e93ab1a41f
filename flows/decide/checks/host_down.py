"""``host_down``: a node is offline, or more than half of its containers (at least 3) turned unreachable together.

One incident; while it stands, that node's per-server findings are correlated. Counted are servers whose container Proxmox says runs
and whose agent was asked in this sweep; an agent that answers without being believed is reachable. *Together*: their silence began within
``confirm_sweeps`` sweeps of each other; an incident that is open already need not prove that again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from flows.decide.sightings import container_running, distrusted, observation_of, unasked
from flows.domain.finding import Check, Finding, Policy
from flows.domain.known import Known, Unknown
from flows.domain.snapshot import Snapshot

#: Proxmox alone tells of an offline node; without the agents only their silence cannot be judged.
SOURCES = frozenset({"database", "proxmox"})


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    if not isinstance(snapshot.proxmox, Known):
        return
    online = snapshot.proxmox.value.nodes_online
    silent = _silent(snapshot)
    enough = {node for node, misses in silent.items() if len(misses) >= policy.host_down_min}
    asked_on = _asked(snapshot) if enough else Counter()
    for node in sorted({*online, *silent}):
        if online.get(node) is False:
            yield _finding(node, "Proxmox reports the node offline", {"cause": "offline"}, SOURCES, confirmed=True)
            continue
        misses = sorted(silent.get(node, ()))
        if node not in enough:
            continue
        asked = asked_on[node]
        if f"{Check.HOST_DOWN}/host:{node}" not in snapshot.fleet.episodes:
            misses = _together(misses, policy.confirm_sweeps)
        if len(misses) >= policy.host_down_min and len(misses) > asked * policy.host_down_fraction:
            evidence = {"cause": "agents", "unreachable": len(misses), "asked": asked}
            sources = SOURCES | {"agents"}
            confirmed = misses[0] >= policy.confirm_sweeps
            yield _finding(node, "more than half of its containers do not answer", evidence, sources, confirmed=confirmed)


def _finding(node: str, why: str, evidence: dict[str, object], sources: frozenset[str], *, confirmed: bool) -> Finding:
    return Finding(
        check=Check.HOST_DOWN,
        subject=f"host:{node}",
        summary=f"host {node}: {why}",
        level=0,
        host=node,
        confirmed=confirmed,
        sources=sources,
        evidence=evidence,
        remedy=f"zlh hosts show {node}",
    )


def _silent(snapshot: Snapshot) -> dict[str, list[int]]:
    """Node → misses (this sweep's included) of its servers that run and do not answer."""
    found: dict[str, list[int]] = {}
    for server_id, answer in snapshot.agents.items():
        if not isinstance(answer, Unknown) or unasked(answer):
            continue
        if container_running(snapshot, server_id) and not distrusted(snapshot, server_id):
            seen = observation_of(snapshot, server_id)
            found.setdefault(snapshot.fleet.servers[server_id].node, []).append(seen.misses if seen else 1)
    return found


def _asked(snapshot: Snapshot) -> Counter[str]:
    """How many running servers of each node were asked."""
    return Counter(snapshot.fleet.servers[i].node for i, a in snapshot.agents.items() if not unasked(a) and container_running(snapshot, i))


def _together(misses: list[int], within: int) -> list[int]:
    """The largest group of sorted values no more than ``within`` apart; of equals, the latest to fall silent."""
    best: list[int] = []
    start = 0
    for end in range(len(misses)):
        while misses[end] - misses[start] > within:
            start += 1
        if end + 1 - start > len(best):
            best = misses[start : end + 1]
    return best


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    node = subject.removeprefix("host:")
    if not isinstance(snapshot.proxmox, Known):
        return "Proxmox is unknown"
    if node not in snapshot.proxmox.value.nodes_online:
        return "Proxmox does not list the node"
    dark = Counter(snapshot.fleet.servers[i].node for i, a in snapshot.agents.items() if unasked(a) and container_running(snapshot, i))[node]
    silent = len(_silent(snapshot).get(node, ()))
    enough = dark and silent + dark >= policy.host_down_min and silent + dark > (_asked(snapshot)[node] + dark) * policy.host_down_fraction
    return f"{dark} of its agents were not asked" if enough else ""
