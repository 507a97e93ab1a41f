"""The suite's own order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import spread

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", spread.LONG)
def test_a_long_file_exists(name: str) -> None:
    assert (ROOT / name).is_file()


def test_stacks_follow_each_other_and_only_the_matrix_is_split() -> None:
    assert spread.unit("tests/lab/test_house.py::test_a") == spread.unit("tests/e2e/test_kills.py::test_b[trust-flow]") == "stacks"
    assert spread.unit("tests/lab/test_roles.py::test_a") == spread.unit("tests/lab/test_roles.py::test_b[x-y]") == "tests/lab/test_roles.py"
    of = {
        spread.unit(f"{spread.SPLIT}::test_killed_at[{cell}]")
        for cell in ("undo-trust:undo:effect", "undo-trust:undo:done", "stop-stop_workload:do:done")
    }
    assert len(of) == 2


def test_the_spread_is_what_make_test_lab_asks_for(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.hasplugin("xdist")
    assert (ROOT / "Makefile").read_text().count("--dist loadfile --no-loadscope-reorder") == 2
