"""How the tests of ``make test-lab`` are spread over workers: a file stays on one, since its fixtures are the module's; the longest begin first.

``--dist loadfile`` alone begins with the files of many tests, and the longest have few. Its ``loadgroup`` does not know this pytest's ids.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

#: Files that take longer than a minute, longest first. All else keeps its order behind them.
LONG = (
    "tests/lab/test_house.py",
    "tests/e2e/test_kills.py",
    "tests/integration/test_kill_matrix.py",
    "tests/lab/test_inventories.py",
    "tests/lab/test_agent_role.py",
    "tests/lab/test_roles.py",
    "tests/integration/test_provisioning_faults.py",
    "tests/e2e/test_engine.py",
    "tests/integration/two_controllers/test_changed_meanwhile.py",
    "tests/integration/two_controllers/test_cloudflare_zone.py",
    "tests/integration/two_controllers/test_clocks.py",
    "tests/integration/two_controllers/test_standing_still.py",
    "tests/lab/test_agent.py",
    "tests/integration/test_databases_races.py",
)
#: A whole stack each, with times that other work delays: one after the other.
STACKS = LONG[:2]
#: Its fixtures cost little; each kind of operation may run elsewhere.
SPLIT = "tests/integration/test_kill_matrix.py"


def unit(nodeid: str) -> str:
    """The tests that one worker runs in a row."""
    file, _, test = nodeid.partition("::")
    if file in STACKS:
        return "stacks"
    return f"{file}::{test.partition('-')[0]}" if file == SPLIT else file


def longest_first(items: list[pytest.Item]) -> None:
    rank = {name: n for n, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


class Spread(LoadFileScheduling):  # type: ignore[misc]  # it ships no types
    """For ``--no-loadscope-reorder``, which keeps the order given."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def scheduler(config: pytest.Config, log: Any) -> Spread | None:
    return Spread(config, log) if config.getoption("dist") == "loadfile" else None
