"""Usage, exit statuses, and what is imported when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import typer

from flows.cli import commands
from flows.cli.main import status_of
from flows.cli.nouns import NOUNS
from flows.errors import AutomationError, BadInput, Busy, Conflict, MisconfiguredSetting, NotFound, RateLimited, Unproven, Unreachable

from .conftest import Said

ROOT = Path(__file__).parents[3]
HEAVY = {
    "sqlalchemy",
    "prefect",
    "ansible_runner",
    "apprise",
    "fastapi",
    "proxmoxer",
    "httpx",
    "aiohttp",
    "rich",
    "flows.settings",
    "flows.bootstrap",
}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bogus",), "zlh: No such command 'bogus' · zlh --help\n"),
        (("servers", "--bogus"), "zlh: No such option: --bogus"),
        (("servers", "show"), "zlh: Missing argument 'ID' · zlh servers show --help\n"),
        (("servers", "--limit", "many"), "zlh: Invalid value for '--limit'"),
        (("servers", "--since", "soon"), "zlh: --since: 'soon' is not valid · is no duration · for example 90s"),
        (("repair-level", "set", "4", "--yes"), "zlh: Invalid value for 'level'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(zlh: Callable[..., Said], arguments: tuple[str, ...], says: str) -> None:
    said = zlh(*arguments)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(says)
    assert said.err.count("\n") == 1


def test_a_group_without_its_command_shows_its_help(zlh: Callable[..., Said]) -> None:
    said = zlh("lab")
    assert said.status == 2
    assert said.err.startswith("Usage: zlh lab")


def test_help_names_every_command(zlh: Callable[..., Said]) -> None:
    said = zlh("--help")
    assert said.status == 0
    assert all(f"\n  {name} " in said.out for name in commands.COMMANDS)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BadInput("a", 1, why="b"), 2),
        (MisconfiguredSetting("ZLH_X"), 2),
        (Unreachable("a"), 3),
        (Unproven("a"), 3),
        (Busy("a"), 1),
        (RateLimited("a"), 1),
        (Conflict("a"), 1),
        (NotFound("a"), 1),
    ],
)
def test_the_exit_status_says_what_an_error_means(error: AutomationError, status: int) -> None:
    assert status_of(error) == status


def test_the_table_holds_what_the_modules_add() -> None:
    added: dict[str, set[str]] = {}
    for module in {module for _, modules in commands.COMMANDS.values() for module in modules}:
        tree = typer.Typer(rich_markup_mode=None)
        import_module(f"flows.cli.{module}").add_to(tree)
        for name in typer.main.get_group(tree).commands:
            added.setdefault(name, set()).add(module)
    assert set(added) == set(commands.COMMANDS)
    assert all(added[name] <= set(modules) for name, (_, modules) in commands.COMMANDS.items())


@pytest.mark.parametrize("name", sorted(commands.COMMANDS))
def test_every_command_explains_itself(zlh: Callable[..., Said], name: str) -> None:
    said = zlh(name, "--help")
    assert said.status == 0
    assert said.out.startswith(f"Usage: zlh {name}")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["servers", "--json"], ["token", "list"], *([noun.name] for noun in NOUNS)], ids=lambda words: " ".join(words)
)
def test_help_and_listings_import_nothing_heavy(home: Path, arguments: list[str]) -> None:
    script = """
import json, sys
from flows.cli.main import run
status = run(sys.argv[1:])
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=os.environ, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert loaded & HEAVY == set()


def test_a_reader_that_has_enough_gets_no_traceback(home: Path) -> None:
    """The pipe's reader is gone before the first line is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "config", "docs"], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_variable_is_refused_by_name(zlh: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLH_DATABASE__URI", "x")
    said = zlh("servers")
    assert said.status == 2
    assert said.err == "zlh: ZLH_DATABASE__URI · is no setting of this program · did you mean ZLH_DATABASE__URL?\n"
