"""``workload_error``: the agent gave up after repeated crashes. Level 2: reported with the crash class; one restart per approval.

A restart by itself would crash again: a person looks first. What crashed is the game's doing, and its class is the agent's word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from flows.decide.checks.workload_stopped import concerned
from flows.domain.agent import WorkloadState
from flows.domain.finding import Action, Check, Finding, Policy
from flows.domain.known import Known
from flows.domain.snapshot import Snapshot

SOURCES = frozenset({"database", "agents"})
_CLASS = re.compile(r"[a-z][a-z0-9_]{0,39}")


def check(snapshot: Snapshot, policy: Policy) -> Iterable[Finding]:
    for server_id, answer in snapshot.agents.items():
        server = snapshot.fleet.servers.get(server_id)
        if server is None or not isinstance(answer, Known) or answer.value.state is not WorkloadState.ERROR or not concerned(snapshot, server):
            continue
        last = crash(answer.value.last_crash)
        yield Finding(
            check=Check.WORKLOAD_ERROR,
            subject=server.id,
            summary=f"{server.name}: crashed again and again ({last['class']}), its agent has given up",
            level=2,
            action=Action.RESTART_WORKLOAD,
            server_id=server.id,
            host=server.node,
            sources=SOURCES,
            evidence=last,
            remedy=f"zlh restart {server.name}",
        )


def crash(said: Mapping[str, object] | None) -> dict[str, object]:
    """Class, time and number of the last crash: an approval is for this one alone. A class that is no plain word is the agent's noise."""
    said = said or {}
    kind = said.get("class")
    numbers = {key: value for key in ("at", "count") if isinstance(value := said.get(key), int | float) and not isinstance(value, bool)}
    return {"class": kind if isinstance(kind, str) and _CLASS.fullmatch(kind) else "unknown", **numbers}


def unproven(snapshot: Snapshot, policy: Policy, subject: str) -> str:
    server = snapshot.fleet.servers.get(subject)
    if server is None or not concerned(snapshot, server):
        return ""
    return "" if isinstance(snapshot.agents.get(subject), Known) else "the agent does not say how the workload is"
