"""Every remedy that a case leads to is a command that exists: ``zlh`` as typed, or what a person runs on the node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from flows.cli.commands import COMMANDS, load
from flows.decide.plan import decide
from tests.support import snapshots

CASES = Path(__file__).parents[2] / "cases" / "decide"


def _remedies() -> list[str]:
    found: set[str] = set()
    for path in CASES.glob("*/*.yml"):
        given: dict[str, Any] = yaml.safe_load(path.read_text()).get("given") or {}
        plan = decide(snapshots.snapshot(given), snapshots.policy(**given.get("policy", {})))
        found.update(finding.remedy for finding in plan.findings)
    return sorted(found)


@pytest.mark.parametrize("remedy", _remedies())
def test_a_remedy_can_be_typed(remedy: str) -> None:
    program, *words = remedy.split()
    if program == "pct":  # on the node
        return
    assert program == "zlh"
    assert words[0] in COMMANDS, remedy
    command = load(words.pop(0))
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, remedy
        command = command.commands[words.pop(0)]
    assert not isinstance(command, click.Group) or command.invoke_without_command
    command.make_context("zlh", words, resilient_parsing=False)


def test_remedies_are_found() -> None:
    assert len(_remedies()) > 10
