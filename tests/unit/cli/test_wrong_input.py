"""What people type wrong, and machines hold wrong: one line that says what, why and what to do; never a traceback, never taken as fine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Fleet, Said

HOST = ("hosts", "add", "pve9", "--memory", "1000", "--disk", "10", "--cores", "2", "--storage", "nvme", "--template", "fabric=9000")


def host(option: str, value: str) -> tuple[str, ...]:
    words = list(HOST)
    words[words.index(option) + 1] = value
    return tuple(words)


@pytest.mark.parametrize(
    "arguments",
    [
        ("pause", "--all", "--yes", "--until", "99999999999d"),
        ("pause", "--all", "--yes", "--until", "0s"),
        ("maintenance", "on", "moss", "--yes", "--for", "99999999999d"),
        ("maintenance", "on", "moss", "--yes", "--for", "0s"),
        ("token", "create", "--admin", "--expires", "99999999999d"),
        ("token", "create", "--admin", "--expires", "0s"),
        ("servers", "--since", "9999999999999999999w"),
        ("servers", "--since", "9" * 400 + "w"),
        ("servers", "--limit", "99999999999999999999"),
        ("servers", "--state", "nope"),
        ("operations", "--state", "nope"),
        ("operations", "--kind", "nope"),
        ("operations", "--queue", "nope"),
        ("findings", "--check", "nope"),
        ("repairs", "--outcome", "nope"),
        ("leases", "--kind", "nope"),
        ("customers", "--billing", "nope"),
        ("tokens", "--role", "nope"),
        ("servers", "--customer", "\udcff"),
        ("servers", "show", "\udcff"),
        ("customers", "add", ""),
        ("customers", "add", "x" * 300),
        ("customers", "add", "a\0b"),
        host("--memory", "99999999999999999999"),
        host("--memory", "-5"),
        host("--disk", "0"),
        host("--cores", "0"),
        host("--storage", ""),
        host("--template", "fabric=99999999999999999999"),
        host("--template", "fabric=²"),
    ],
    ids=lambda words: " ".join(words)[:60].encode("ascii", "replace").decode(),
)
def test_it_is_refused_as_wrong_usage(zlh: Callable[..., Said], fleet: Fleet, arguments: tuple[str, ...]) -> None:
    said = zlh(*arguments)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("zlh: ")
    assert said.err.count("\n") == 1
    assert len(said.err) < 1000


@pytest.mark.parametrize("arguments", [("servers",), ("status",), ("migrate",), ("customers", "add", "alice")])
@pytest.mark.parametrize("url", ["garbage", "", "mysql://u:hush@h/zlh", "sqlite:///zlh.db"])
def test_a_database_url_that_cannot_be_is_a_setting_to_correct(
    zlh: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], url: str
) -> None:
    monkeypatch.setenv("ZLH_DATABASE__URL", url)
    said = zlh(*arguments)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("zlh: ZLH_DATABASE__URL · ")
    assert "for example sqlite+aiosqlite:///" in said.err
    assert "hush" not in said.err


def test_a_place_where_nothing_can_be_written_could_not_be_looked_at(zlh: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    assert zlh("lab", "up", "--dir", "/proc/x").status == 3
    monkeypatch.setenv("ZLH_DATABASE__URL", "sqlite+aiosqlite:////proc/x/zlh.db")
    said = zlh("migrate")
    assert said.status == 3
    assert said.err.startswith("zlh: database · /proc/x: ")
    assert "ZLH_DATABASE__URL" in said.err


def test_an_env_file_that_is_no_text_is_a_setting_to_correct(zlh: Callable[..., Said], home: Path) -> None:
    (home / "zlh.env").write_bytes(b"\xff\xfe")
    said = zlh("servers")
    assert said.status == 2
    assert said.err.startswith("zlh: ZLH_ENV_FILE · ")


def test_a_secrets_file_that_is_no_text_is_a_setting_to_correct(zlh: Callable[..., Said], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "token").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("ZLH_PROXMOX__TOKEN_FILE", str(home / "token"))
    said = zlh("status")
    assert said.status == 2
    assert said.err.startswith("zlh: ZLH_PROXMOX__TOKEN_FILE · ")


@pytest.mark.parametrize("arguments", [("status",), ("pause", "--all", "--yes"), ("customers", "add", "alice"), ("repair-level",)])
def test_a_database_without_tables_names_the_command_that_makes_them(
    zlh: Callable[..., Said], home: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    (home / "empty.db").touch()
    monkeypatch.setenv("ZLH_DATABASE__URL", f"sqlite+aiosqlite:///{home}/empty.db")
    said = zlh(*arguments)
    assert said.status == 3
    assert "no such table" in said.err
    assert "zlh migrate" in said.err
