"""``zlh up`` before anything runs: whose settings are in force, and what is generated."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli.stack import MARK, Stack
from flows.environment import read_env_file
from flows.errors import BadInput, Conflict, MisconfiguredSetting


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ZLH_ENV_FILE", "ZLH_DATABASE__URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def _prepared(here: Path) -> Stack:
    stack = Stack(here / "up", fleet="none", say=lambda _: None)
    stack.prepare()
    return stack


def test_with_a_real_fleet_the_operators_settings_hold(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "token").write_text("from-a-file\n")
    (here / "zlh.env").write_text(f"ZLH_PROXMOX__HOST=10.9.9.9:8006\nZLH_DNS__ZONE=real.example\nZLH_API__CONTROL_TOKEN_FILE={here / 'token'}\n")
    monkeypatch.setenv("ZLH_ENV_FILE", str(here / "zlh.env"))
    monkeypatch.setenv("ZLH_DNS__ZONE", "nearer.example")
    settings = _prepared(here).settings
    assert (settings.proxmox.host, settings.dns.zone) == ("10.9.9.9:8006", "nearer.example")
    assert settings.api.control_token.get_secret_value() == "from-a-file"
    assert (settings.api.public_bind, settings.api.control_bind) == ("127.0.0.1:8700", "127.0.0.1:8701"), "no port that nobody knows"


def test_what_is_left_open_is_generated_once_and_kept_private(here: Path) -> None:
    first = _prepared(here)
    assert first.env_file.stat().st_mode & 0o777 == 0o600
    values = read_env_file(first.env_file)
    assert len(values["ZLH_AGENT__MASTER_SECRET"]) >= 32 and values["ZLH_API__ADMIN_TOKEN"]
    assert read_env_file(_prepared(here).env_file) == values


def test_a_wrong_setting_ends_it_before_anything_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZLH_PROXMOX__HOSTS", "10.9.9.9")
    with pytest.raises(MisconfiguredSetting, match="ZLH_PROXMOX__HOSTS"):
        _prepared(here)


def test_what_the_environment_says_by_one_name_replaces_the_file_of_the_other(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "token").write_text("from-a-file\n")
    (here / "zlh.env").write_text(f"ZLH_API__CONTROL_TOKEN_FILE={here / 'token'}\nZLH_ENGINE__AUTH=zlh:near\n")
    monkeypatch.setenv("ZLH_ENV_FILE", str(here / "zlh.env"))
    monkeypatch.setenv("ZLH_API__CONTROL_TOKEN", "nearer")
    monkeypatch.setenv("ZLH_ENGINE__AUTH_FILE", str(here / "token"))
    settings = _prepared(here).settings
    assert settings.api.control_token.get_secret_value() == "nearer"
    assert settings.engine.auth.get_secret_value() == "from-a-file"


def test_a_directory_that_is_no_demos_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="--dir"):
        Stack.discard(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_what_runs_by_settings_is_neither_discarded_nor_taken_for_a_labs(tmp_path: Path) -> None:
    """One forgotten ``--fleet none`` must not cost a database."""
    (tmp_path / MARK).write_text("none\n")
    (tmp_path / "zlh.db").write_text("customers")
    with pytest.raises(BadInput, match="--dir"):
        Stack.discard(tmp_path)
    with pytest.raises(Conflict, match="fleet none"):
        Stack(tmp_path, fleet="sim").prepare()
    assert (tmp_path / "zlh.db").read_text() == "customers"


def test_an_earlier_demo_is_discarded(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / MARK).write_text("sim\n")
    (tmp_path / "demo" / "zlh.db").write_text("old")
    Stack.discard(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
