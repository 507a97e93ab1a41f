"""Each scenario gives its golden log, whatever the hash seed: run in processes of their own, which end without their dead ones' ``finally``."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "scenarios"
NAMES = sorted(path.parent.name for path in HERE.glob("*/events.yml"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flows.simulate.simulation import make_template

    path = tmp_path_factory.mktemp("simulate")
    make_template(path)
    return path


def played(name: str, home: Path) -> str:
    command = [sys.executable, "-m", "flows.simulate", str(home), str(HERE / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_gives_its_log(name: str, home: Path) -> None:
    golden = HERE / name / "expected.log"
    log = played(name, home)
    if os.environ.get("SCENARIOS_ACCEPT"):
        golden.write_text(log, encoding="utf-8")
    expected = golden.read_text(encoding="utf-8") if golden.exists() else ""
    difference = "\n".join(difflib.unified_diff(expected.splitlines(), log.splitlines(), "expected.log", "this run", lineterm="", n=2))
    assert not difference, f"{difference}\n\nSCENARIOS_ACCEPT=1 writes it, once you have read it"


@pytest.mark.parametrize("name", NAMES)
def test_no_invariant_breaks(name: str) -> None:
    golden = HERE / name / "expected.log"
    assert golden.exists() and "VIOLATION" not in golden.read_text(encoding="utf-8")
