"""The pages tell the truth: every command exists with its options, every check has its runbook, every link leads somewhere."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from flows.cli import commands
from flows.cli.services import DRAIN_S
from flows.clients.proxmox.rights import LEAST_RIGHTS
from flows.decide.checks.registry import CHECKS
from flows.domain.event import EventKind
from flows.domain.finding import Check
from flows.settings import fields

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMAND = re.compile(r"^(?:    |ExecStart=/usr/local/bin/|    \.venv/bin/)(zlh .*)$|`(zlh [a-z][^`]*)`", re.MULTILINE)
#: A command within a sentence: its words, then options and what stands between them, to the first sign that ends it.
SAID = re.compile(r"(?<![\w./-])(zlh(?: (?:--?[a-z][a-z-]*|[a-z][a-z|-]*|[A-Z][A-Za-z|]*))+)")
#: Sentences about the program, and commands whose first word is a value.
PROSE = ("zlh took ", "zlh sends ", "zlh lab Proxmox", "zlh VALUE")


def mentioned() -> list[tuple[str, str]]:
    return [(page.relative_to(ROOT).as_posix(), next(filter(None, found))) for page in PAGES for found in COMMAND.findall(page.read_text())]


def texts() -> list[tuple[str, str]]:
    """Every ``zlh …`` in a string of the program, docstrings included: up to where the command's words end."""
    found = []
    for path in sorted(ROOT.glob("flows/**/*.py")):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                said = "".join(part.value if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said = node.value
            else:
                continue
            found += [(name, each) for line in SAID.findall(said) if not line.startswith(PROSE) for each in alternatives(line)]
    return sorted(set(found))


def alternatives(line: str) -> list[str]:
    """``zlh ca init|rotate`` is two commands."""
    return [" ".join(words) for words in itertools.product(*(word.split("|") for word in line.split(" ")))]


def problem_with(line: str) -> str:
    """Why ``zlh`` would refuse the words and options of a line; empty if it would not."""
    words = shlex.split(line, comments=True)[1:]
    known = {"--help", "-h", "--install-completion", "--show-completion"}
    if words[0] in known:
        return ""
    if words[0] not in commands.COMMANDS:
        return f"no command {words[0]}"
    command: Any = commands.load(words.pop(0))
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    options = known | {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in options]
    if unknown:
        return f"no option {unknown[0]}"
    if words and hasattr(command, "commands") and not words[0].startswith("-"):
        return f"no command {words[0]}"
    return ""


def test_there_are_commands_to_judge() -> None:
    assert len(mentioned()) > 100
    assert len(texts()) > 100
    assert problem_with("zlh nodes") == "no command nodes"
    assert problem_with("zlh servers --nonsense") == "no option --nonsense"
    assert problem_with("zlh customers forget alice") == "no command forget"


@pytest.mark.parametrize(("page", "line"), mentioned(), ids=lambda value: value[:60])
def test_a_documented_command_exists(page: str, line: str) -> None:
    assert problem_with(line) == "", page


@pytest.mark.parametrize(("module", "line"), texts(), ids=lambda value: value[:60])
def test_a_command_that_the_program_names_exists(module: str, line: str) -> None:
    assert problem_with(line) == "", module


@pytest.mark.parametrize("check", sorted(Check))
def test_every_check_has_a_runbook(check: Check) -> None:
    text = (ROOT / "docs" / "runbooks" / f"{check.value}.md").read_text()
    assert text.startswith(f"# {check.value}: ")
    assert f"({check.value}.md)" in (ROOT / "docs" / "runbooks" / "README.md").read_text()
    assert set(CHECKS) <= set(Check)


#: What this version never sends: it takes no payments and patches nothing.
NEVER_SENT = {
    EventKind.BILLING_WEBHOOK_FAILED,
    EventKind.PAYMENT_FAILED,
    EventKind.PAYMENT_RECEIVED,
    EventKind.PLAN_CHANGED,
    EventKind.PATCH_FINISHED,
}


@pytest.mark.parametrize("kind", sorted(EventKind))
def test_every_alert_has_a_page(kind: EventKind) -> None:
    """Its check's, or the one that the README names."""
    named = re.search(rf"`{kind.value}`[^|]*\| (.*) \|", (ROOT / "docs" / "runbooks" / "README.md").read_text())
    assert (kind.value in set(Check)) + (named is not None) == (kind not in NEVER_SENT), kind
    sent = [path for path in ROOT.glob("flows/**/*.py") if path.name not in ("event.py", "routing.py", "message.py") if kind.name in path.read_text()]
    assert bool(sent) == (kind not in NEVER_SENT), sent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_documented_settings_exist() -> None:
    known = {variable for variable, _, _ in fields()} | {"ZLH_ENV_FILE"}
    for page in PAGES:
        for variable in re.findall(r"ZLH_[A-Z_]+[A-Z]", page.read_text().replace("ZLH_*", "")):
            assert variable in known or variable.removesuffix("_FILE") in known, f"{page.name}: {variable}"


def test_the_documented_rights_are_the_least_ones() -> None:
    granted = dict(re.findall(r'pveum role add (\w+) -privs "([^"]+)"', (ROOT / "docs" / "install.md").read_text()))
    roles = dict(re.findall(r"acl modify (\S+)\s+\$who --roles (\w+)", (ROOT / "docs" / "install.md").read_text()))
    assert {path: frozenset(granted[role].split(",")) for path, role in roles.items()} == dict(LEAST_RIGHTS)


def test_the_unit_lets_operations_end_before_it_is_killed() -> None:
    """systemd would TERM the worker with the rest, and a worker that is stopped kills its flows; and what it waits is longer than the drain."""
    page = (ROOT / "docs" / "install.md").read_text()
    unit = page[page.index("# /etc/systemd/system/zlh.service") :].partition("```")[0]
    assert "KillMode=mixed\n" in unit
    said = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert said and int(said[1]) >= DRAIN_S + 60
