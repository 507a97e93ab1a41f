"""What a person reads of simulations while they run."""

from __future__ import annotations

import sys

import pytest

from flows.simulate import report
from flows.simulate.running import Result


@pytest.mark.parametrize(("terminal", "said"), [(True, "\r1 of 2\r2 of 2\n"), (False, "")])
def test_a_batch_counts_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool, said: str) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    tell = report.progress(2)
    for seed in (1, 2):
        tell(Result({"seed": seed}))
    captured = capsys.readouterr()
    assert (captured.err, captured.out) == (said, "")
