"""The agents as a source: what kept us from asking is no agent's silence."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import pytest

from flows.decide.plan import decide
from flows.domain.agent import AgentStatus
from flows.domain.finding import Check
from flows.domain.known import Known, Unknown
from flows.domain.server import Server
from flows.errors import MisconfiguredSetting, Unreachable
from flows.observe import agents as source
from tests.support import snapshots
from tests.unit.act import fakes


class Agents(fakes.Agents):
    def __init__(self, trouble: Exception | float) -> None:
        super().__init__(fakes.World())
        self.trouble = trouble

    async def probe(self, servers: Sequence[Server]) -> Mapping[str, Known[AgentStatus] | Unknown]:
        if isinstance(self.trouble, float):
            await asyncio.sleep(self.trouble)
        else:
            raise self.trouble
        return {}


FAULTS: list[Callable[[], Exception | float]] = [
    lambda: MisconfiguredSetting("ZLH_AGENT__MASTER_SECRET", why="is empty"),
    lambda: Unreachable("agents", why="no sockets left"),
    lambda: 3600.0,
]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_of_our_own_is_one_unknown_source_and_nobodys_silence(fault: Callable[[], Exception | float]) -> None:
    """Else every server would miss an answer, and after two sweeps every host would be down."""
    before = snapshots.snapshot({"servers": {"fern": {"copies": 4, "misses": 1}}})
    answers = await source.probe(Agents(fault()), list(before.fleet.servers.values()), 0.05)
    assert set(answers) == set(before.fleet.servers)
    assert all(isinstance(a, Unknown) and a.reason.startswith("not asked: ") for a in answers.values())
    plan = decide(dataclasses.replace(before, agents=answers), snapshots.POLICY)
    assert [f.key for f in plan.findings if f.check in (Check.SOURCE_UNKNOWN, Check.HOST_DOWN, Check.AGENT_OFFLINE)] == [
        "source_unknown/source:agents"
    ]
