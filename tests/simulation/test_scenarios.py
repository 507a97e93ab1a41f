"""Each scenario gives its golden log, whatever the hash seed: played in processes of their own, which end without their dead ones' ``finally``."""

from __future__ import annotations

import difflib
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "scenarios"
NAMES = sorted(path.parent.name for path in HERE.glob("*/events.yml"))


@pytest.fixture(scope="module")
def logs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the logs of all scenarios that are asked for, played once for all workers of this run."""
    from flows.simulate.simulation import make_template

    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "scenarios"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "template.db").exists():
            make_template(home)
            asked = {item.callspec.params["name"] for item in request.session.items if "logs" in getattr(item, "fixturenames", ())}
            command = [sys.executable, "-m", "flows.simulate", str(home), *(str(HERE / name) for name in sorted(asked))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            (home / "errors").write_text(done.stderr, encoding="utf-8")
    return home


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_gives_its_log(name: str, logs: Path) -> None:
    golden, played = HERE / name / "expected.log", logs / f"{name}.log"
    assert played.exists(), (logs / "errors").read_text(encoding="utf-8")[-3000:]
    log = played.read_text(encoding="utf-8")
    if os.environ.get("SCENARIOS_ACCEPT"):
        golden.write_text(log, encoding="utf-8")
    expected = golden.read_text(encoding="utf-8") if golden.exists() else ""
    difference = "\n".join(difflib.unified_diff(expected.splitlines(), log.splitlines(), "expected.log", "this run", lineterm="", n=2))
    assert not difference, f"{difference}\n\nSCENARIOS_ACCEPT=1 writes it, once you have read it"


@pytest.mark.parametrize("name", NAMES)
def test_no_invariant_breaks(name: str) -> None:
    golden = HERE / name / "expected.log"
    assert golden.exists() and "VIOLATION" not in golden.read_text(encoding="utf-8")
